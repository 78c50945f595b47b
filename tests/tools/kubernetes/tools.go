//go:build tools

// Package tools names the programs of a cluster, so that go.mod and go.sum pin all they are made of.
package tools

import (
	_ "k8s.io/kubernetes/cmd/kubectl"
	_ "k8s.io/kubernetes/test/images/agnhost"
)
