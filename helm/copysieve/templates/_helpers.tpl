{{- define "copysieve.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "copysieve.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "copysieve.labels" -}}
{{ include "copysieve.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "copysieve.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "copysieve.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end }}

{{- define "copysieve.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "copysieve.port" -}}
{{ dig "http" "port" 9464 .Values.config | int }}
{{- end }}

{{- /* What SIGTERM may take by the settings, and 10 s. */ -}}
{{- define "copysieve.grace" -}}
{{ dig "shutdown" "deadline_seconds" 40 .Values.config | float64 | ceil | int | add 10 }}
{{- end }}

{{- /* Settings as YAML. Fails on a secret, and unlike the schema does not show it. */ -}}
{{- define "copysieve.config" -}}
{{- $kafka := .Values.config.kafka | default dict -}}
{{- $redis := .Values.config.redis | default dict -}}
{{- $passwords := dict
      "kafka.sasl.password" (dig "sasl" "password" "" $kafka)
      "kafka.ssl.password" (dig "ssl" "password" "" $kafka)
      "redis.ssl.password" (dig "ssl" "password" "" $redis) -}}
{{- range $name, $value := $passwords -}}
{{- if and $value (not (hasPrefix "file:" $value)) -}}
{{- fail (printf "config.%s: a secret comes from existingSecret, or is a file:/path" $name) -}}
{{- end -}}
{{- end -}}
{{- if contains "@" ($redis.url | default "") -}}
{{- fail "config.redis.url: a login comes from existingSecret, as COPYSIEVE_REDIS__URL" -}}
{{- end -}}
{{- toYaml .Values.config -}}
{{- end }}
