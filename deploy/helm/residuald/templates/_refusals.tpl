{{- /* Refuses values that do not go together, which a schema cannot express. Each message tells what to do. */}}
{{- define "residuald.refusals" -}}
{{- $kafka := .Values.config.kafka -}}
{{- if not $kafka.brokers }}{{ fail "config.kafka.brokers is not set: the bootstrap servers, for instance kafka:9092" }}{{ end -}}
{{- if not $kafka.topics }}{{ fail "config.kafka.topics is not set: the topics to read, for instance [payments]" }}{{ end -}}
{{- if hasKey (default dict .Values.config.model) "bundle" }}{{ fail "config.model.bundle is set by the chart: remove it, and set bundle.pvc, bundle.image or bundle.init" }}{{ end -}}

{{- $sources := compact (list .Values.bundle.pvc.claimName .Values.bundle.image.reference .Values.bundle.init.image) -}}
{{- if ne (len $sources) 1 }}{{ fail (printf "set exactly one of bundle.pvc.claimName, bundle.image.reference and bundle.init.image: %d are set" (len $sources)) }}{{ end -}}
{{- if and .Values.bundle.image.reference (semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version) }}{{ fail (printf "bundle.image needs Kubernetes 1.31 or newer, this is %s: use bundle.init" .Capabilities.KubeVersion.Version) }}{{ end -}}

{{- range $section := list "client" "consumer" "producer" -}}
{{- range $name := list "group.instance.id" "transactional.id" -}}
{{- if hasKey (default dict (get $kafka $section)) $name }}{{ fail (printf "config.kafka.%s.%q would be the same for every replica, and replicas that share it fence each other: remove it (values.yaml explains why)" $section $name) }}{{ end -}}
{{- end -}}
{{- end -}}

{{- if regexMatch "^(127\\.|\\[::1\\])" .Values.config.http.listen }}{{ fail (printf "config.http.listen = %q: probes cannot reach a loopback address; use 0.0.0.0:9464 or [::]:9464" .Values.config.http.listen) }}{{ end -}}

{{- with .Values.keda -}}
{{- if .enabled -}}
{{- if $.Values.hpa.enabled }}{{ fail "keda and hpa would both scale the Deployment: enable one" }}{{ end -}}
{{- if not .partitions }}{{ fail "keda.partitions is not set: set it to the total number of partitions of the topics" }}{{ end -}}
{{- if gt (int .maxReplicaCount) (int .partitions) }}{{ fail (printf "keda.maxReplicaCount = %v is above keda.partitions = %v: the additional replicas would stay idle" .maxReplicaCount .partitions) }}{{ end -}}
{{- if gt (int .minReplicaCount) (int (default .partitions .maxReplicaCount)) }}{{ fail (printf "keda.minReplicaCount = %v is above keda.maxReplicaCount = %v" .minReplicaCount (default .partitions .maxReplicaCount)) }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end }}
