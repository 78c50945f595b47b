//go:build tools

// Package tools names the programs that the tests drive, so that go.mod and go.sum pin all they are made of.
package tools

import (
	_ "github.com/containernetworking/cni/cnitool"
	_ "sigs.k8s.io/cri-tools/cmd/crictl"
	_ "sigs.k8s.io/cri-tools/cmd/critest"
)
