{{/* What the names of a release's objects begin with. templates/checks.yaml refuses what Kubernetes would. */}}
{{- define "sccache-dock.fullname" -}}
{{- $name := .Values.nameOverride | default "sccache" -}}
{{- $prefixed := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) -}}
{{- .Values.fullnameOverride | default $prefixed -}}
{{- end -}}

{{/* What every object of a release has, and no other release's. Selectors and volume claims may never change. */}}
{{- define "sccache-dock.release" -}}
app.kubernetes.io/name: sccache-dock
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "sccache-dock.labels" -}}
{{ include "sccache-dock.release" . }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Selects the pods of one component of one release; called with (list . "cache") or (list . "builder"). */}}
{{- define "sccache-dock.selector" -}}
{{ include "sccache-dock.release" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* Labels and annotations of a pod; called with (list . "cache" its values). */}}
{{- define "sccache-dock.podMetadata" -}}
{{- $component := index . 2 -}}
labels:
  {{- include "sccache-dock.selector" . | nindent 2 }}
  {{- with mergeOverwrite (dict) (index . 0).Values.commonLabels $component.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with $component.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sccache-dock.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sccache-dock.tokens" -}}
{{- .Values.tokens.existingSecret | default (printf "%s-tokens" (include "sccache-dock.fullname" .)) -}}
{{- end -}}

{{/* What every pod has; called with the component's values, the name of its service account and the whole. */}}
{{- define "sccache-dock.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ .component.terminationGracePeriodSeconds }}
{{- with .component.serviceAccount }}
{{- with .name | default (ternary $.account "" .create) }}
serviceAccountName: {{ . }}
{{- end }}
{{- end }}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .component.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .component.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .component.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "sccache-dock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10426
runAsGroup: 10426
fsGroup: 10426
seccompProfile:
  type: Localhost
  localhostProfile: {{ .Values.seccompProfile }}
{{- with .Values.appArmorProfile }}
appArmorProfile:
  type: Localhost
  localhostProfile: {{ . }}
{{- end }}
{{- end -}}

{{- define "sccache-dock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop:
    - ALL
{{- end -}}

{{/* Settings of both components, which a component's own come before; called with its values. */}}
{{- define "sccache-dock.podEnv" -}}
{{- $own := keys .env -}}
{{- range .extraEnv }}{{ $own = append $own .name }}{{ end -}}
# Before the pod is killed.
- name: SCCACHE_STOP_GRACE
  value: {{ sub .terminationGracePeriodSeconds 10 }}s
{{- if not (has "SCCACHE_LOG_FORMAT" $own) }}
- name: SCCACHE_LOG_FORMAT
  value: json
{{- end }}
{{- if not (has "SCCACHE_PUBLIC_ADDR" $own) }}
- name: SCCACHE_PUBLIC_ADDR
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
{{- end }}
{{- if not (has "SCCACHE_BUILDER_SLOTS" $own) }}
# A limit is a quota and hides no processor.
- name: SCCACHE_BUILDER_SLOTS
  valueFrom:
    resourceFieldRef:
      resource: limits.cpu
{{- end }}
{{- range $name, $value := .env }}
- name: {{ $name }}
  # As JSON: 4294967296 would be 4.294967296e+09 otherwise.
  value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }}
{{- end }}
{{- with .extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* All settings of a component by name, as JSON: those of extraEnv may have no value here. Called with its values. */}}
{{- define "sccache-dock.settings" -}}
{{- $settings := deepCopy .env -}}
{{- range .extraEnv }}{{ $_ := set $settings .name (get . "value") }}{{ end -}}
{{- toJson $settings -}}
{{- end -}}

{{/* Without the relay, clients send their jobs to the builders themselves. */}}
{{- define "sccache-dock.clientsReachBuilders" -}}
{{- $settings := include "sccache-dock.settings" .Values.cache | fromJson -}}
{{- if eq (get $settings "SCCACHE_RELAY" | toString) "off" -}}true{{- end -}}
{{- end -}}

{{/* Who may use the cache, as the peers of a network policy. */}}
{{- define "sccache-dock.clients" -}}
{{- with .Values.networkPolicy -}}
{{- if .clientLabel }}
- namespaceSelector:
    {{- toYaml .clientNamespaces | nindent 4 }}
  podSelector:
    matchLabels:
      {{ .clientLabel }}: "true"
{{- end }}
{{- with .cacheIngress }}
{{ toYaml . }}
{{- end }}
{{- end -}}
{{- end -}}

{{/* A quantity of Kubernetes, such as 1.5Gi or 50e9, as a number; nothing for what is none. */}}
{{- define "sccache-dock.bytes" -}}
{{- $units := dict "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $units = merge $units (dict "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) -}}
{{- $units = merge $units (dict "" 1 "Pi" 1125899906842624 "Ei" 1152921504606846976) -}}
{{- if regexMatch "^[+]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$" . -}}
{{- $unit := regexFind "([numkMGTPE]|[KMGTPE]i)$" . -}}
{{- mulf (trimSuffix $unit .) (get $units $unit) -}}
{{- end -}}
{{- end -}}

{{- define "sccache-dock.http" -}}
{{- if .Values.tls.secret }}https{{ else }}http{{ end -}}
{{- end -}}

{{- define "sccache-dock.url" -}}
{{ include "sccache-dock.http" . }}://{{ include "sccache-dock.fullname" . }}.{{ .Release.Namespace }}:4226
{{- end -}}

{{- define "sccache-dock.scheme" -}}
{{- if .Values.tls.secret }}scheme: HTTPS{{ end -}}
{{- end -}}

{{/* A certificate that a component presents to another machine; called with the component's values. */}}
{{- define "sccache-dock.certificateEnv" -}}
{{- if .clientCertificateSecret -}}
- name: SCCACHE_TLS_CLIENT_CERT
  value: /run/secrets/certificate/tls.crt
- name: SCCACHE_TLS_CLIENT_KEY
  value: /run/secrets/certificate/tls.key
{{- end -}}
{{- end -}}

{{- define "sccache-dock.certificateMount" -}}
{{- if .clientCertificateSecret -}}
- name: certificate
  mountPath: /run/secrets/certificate
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "sccache-dock.certificateVolume" -}}
{{- with .clientCertificateSecret -}}
- name: certificate
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end -}}
{{- end -}}
