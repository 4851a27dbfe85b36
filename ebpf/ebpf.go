// Package ebpf
package ebpf
