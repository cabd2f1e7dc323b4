{{- define "residuald.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{- define "residuald.selectorLabels" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "residuald.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "residuald.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* The name and labels of all objects. */}}
{{- define "residuald.metadata" -}}
name: {{ include "residuald.fullname" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "residuald.labels" . | nindent 2 }}
{{- end }}

{{- define "residuald.serviceAccountName" -}}
{{- default (.Values.serviceAccount.create | ternary (include "residuald.fullname" .) "default") .Values.serviceAccount.name -}}
{{- end }}

{{- define "residuald.port" -}}
{{- regexFind "[0-9]+$" .Values.config.http.listen -}}
{{- end }}

{{- define "residuald.scheme" -}}
{{- empty .Values.config.http.tls_certificate | ternary "http" "https" -}}
{{- end }}

{{- /* Renders a table of settings, one line for each dotted key. Values are written as JSON, because numbers from files are floats: 256, not 256.0. */}}
{{- define "residuald.toml" -}}
{{- range $key, $value := .table }}
{{- $path := append $.path (regexMatch "^[A-Za-z0-9_-]+$" $key | ternary $key (toRawJson $key)) }}
{{- if kindIs "map" $value }}
{{- include "residuald.toml" (dict "table" $value "path" $path) }}
{{- else if not (kindIs "invalid" $value) }}
{{ join "." $path }} = {{ toRawJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{- define "residuald.config" -}}
{{- $ours := dict "model" (dict "bundle" "/bundle") -}}
{{- include "residuald.toml" (dict "table" (merge $ours .Values.config) "path" list) | trim -}}
{{- end }}

{{- /* The seconds in addition to the drain, for closing HTTP, leaving the group and ending the last transaction. */}}
{{- define "residuald.gracePeriod" -}}
{{- $drain := toString .Values.config.kafka.drain_timeout -}}
{{- if not (regexMatch "^[0-9]+(ms|s|m)$" $drain) -}}
{{- fail (printf "config.kafka.drain_timeout = %q: write it as a number of ms, s or m, because terminationGracePeriodSeconds is computed from it" $drain) -}}
{{- end -}}
{{- $number := regexFind "^[0-9]+" $drain | int -}}
{{- $seconds := hasSuffix "ms" $drain | ternary (div (add $number 999) 1000) (hasSuffix "m" $drain | ternary (mul 60 $number) $number) -}}
{{- add $seconds 15 -}}
{{- end }}
