{{/* The image, by digest where there is one. */}}
{{- define "fabric.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels by which workloads find their pods: never changed. Takes the component's name. */}}
{{- define "fabric.selector" -}}
app.kubernetes.io/name: fabric
app.kubernetes.io/component: {{ . }}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "fabric.labels" -}}
app.kubernetes.io/name: fabric
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: fabric
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}
