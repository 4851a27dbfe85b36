{{- /* What the pods of both DaemonSets have in common. */ -}}
{{- define "fairlead.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "fairlead.account" -}}
apiVersion: v1
kind: ServiceAccount
metadata: {name: {{ .name }}, namespace: {{ .namespace }}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: {{ .name }}}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ .name }}}
subjects:
- {kind: ServiceAccount, name: {{ .name }}, namespace: {{ .namespace }}}
{{- end -}}

{{- define "fairlead.pod" -}}
# The kernel that is programmed is the node's.
hostNetwork: true
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
priorityClassName: {{ .Values.priorityClassName | quote }}
nodeSelector: {{- toYaml .Values.nodeSelector | nindent 2 }}
tolerations: {{- toYaml .Values.tolerations | nindent 2 }}
terminationGracePeriodSeconds: 10
{{- end -}}

{{- define "fairlead.update" -}}
# One that ends leaves all that it programmed to the next one.
type: RollingUpdate
rollingUpdate: {maxUnavailable: {{ .Values.maxUnavailable }}}
{{- end -}}

{{- define "fairlead.env" -}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- if not .Values.kubeProxyConfigMap }}
- {name: KUBERNETES_SERVICE_HOST, value: {{ .Values.apiServer.host | quote }}}
- {name: KUBERNETES_SERVICE_PORT, value: {{ .Values.apiServer.port | quote }}}
{{- end }}
{{- end -}}

{{- define "fairlead.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "fairlead.mounts" -}}
# Here 'fairlead status' and the like find the proxy, also those outside of the pod.
- {name: run, mountPath: /run/fairlead}
# What the API server said last, for a node that boots while it is away.
- {name: state, mountPath: /var/lib/fairlead}
- {name: xtables-lock, mountPath: /run/xtables.lock}
# Without privileges /proc/sys is read-only.
- {name: sysctls, mountPath: /host/proc/sys/net}
# Network namespaces of pods that are made later are to be seen too.
- {name: netns, mountPath: /run/netns, mountPropagation: HostToContainer}
{{- if .Values.kubeProxyConfigMap }}
- {name: config, mountPath: /var/lib/kube-proxy, readOnly: true}
{{- end }}
{{- end -}}

{{- define "fairlead.volumes" -}}
- {name: run, hostPath: {path: /run/fairlead, type: DirectoryOrCreate}}
- {name: state, hostPath: {path: /var/lib/fairlead, type: DirectoryOrCreate}}
- {name: xtables-lock, hostPath: {path: /run/xtables.lock, type: FileOrCreate}}
- {name: sysctls, hostPath: {path: /proc/sys/net, type: Directory}}
- {name: netns, hostPath: {path: /run/netns, type: DirectoryOrCreate}}
{{- if .Values.kubeProxyConfigMap }}
- {name: config, configMap: {name: {{ .Values.kubeProxyConfigMap | quote }}}}
{{- end }}
{{- end -}}
