# make build   static binaries in bin/
# make demo    a cluster of two nodes on this machine, and what it can do
# make test    all tests; the kernel's part is done by the kernel, so root is needed
# make e2e-kube tests with a real API server, which is built first (some minutes)
# make e2e-vm  tests in Debian's kernel KERNEL, 6.1 or 6.12, in an emulated machine; SUITE=PACKAGE,... for some
# make fuzz    each decoder gets FUZZTIME of input that nobody would write
# make lint    what the code must keep to
# make image   bin/fairlead-image.tar, an OCI image for amd64 and arm64
.DEFAULT_GOAL := build
.PHONY: build image image-root image-programs image-lock man manifests demo test e2e e2e-kube e2e-vm kubernetes bench bench-kube bench-docs fuzz vuln lint generate clean packages

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
PROGRAMS := fairlead fairlead-cni fairlead-lab

build:
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/ $(PROGRAMS:%=./cmd/%)

# An archive for 'ctr images import', made without a container engine.
PLATFORMS := linux/amd64,linux/arm64
IMAGE := localhost/fairlead:$(shell sed -n 's/^appVersion: //p' deploy/chart/Chart.yaml)
comma := ,
BIN := bin
image: image-programs
	cd deploy && go run ./image --programs $(abspath $(BIN))/image --platforms $(PLATFORMS) --version $(VERSION) --name $(IMAGE) --out $(abspath $(BIN))/fairlead-image.tar

# The file system of the image for one platform: deploy/Dockerfile's.
image-root: image-programs
	cd deploy && go run ./image --programs $(abspath $(BIN))/image --platforms $(PLATFORMS) --root $(abspath $(BIN))/image/root

image-programs:
	$(foreach p,$(subst $(comma), ,$(PLATFORMS)),CGO_ENABLED=0 GOOS=linux GOARCH=$(notdir $p) \
		go build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/image/$(subst /,-,$p)/ ./cmd/fairlead ./cmd/fairlead-cni &&) true

# What Debian has of iptables today goes into the image.
image-lock:
	cd deploy && go run ./image --lock >image/packages.new && mv image/packages.new image/packages.lock

# Manual pages, of section 8.
man: build
	bin/fairlead man bin/man

manifests:
	cd deploy && go run ./manifests

demo: packages build
	bin/fairlead-lab demo

test: packages
	go test -timeout 20m ./...

e2e: packages
	go test -timeout 20m -count=1 -v ./e2e/...

# Kubernetes is built before the tests, whose time is limited.
e2e-kube: packages kubernetes
	cd e2e/kube && go test -timeout 40m -count=1 ./...

# The proxy beside the real kube-proxy, with 10,000 Services.
bench-kube: packages kubernetes
	cd e2e/kube && go test -timeout 20m -run '^$$' -bench BesideKubeProxy -benchtime 2x .

kubernetes:
	@.ci/packages etcd:etcd-server
	cd e2e/kube && go run ./programs

KERNEL := 6.1
e2e-vm: packages
	@.ci/packages qemu-system-x86_64:qemu-system-x86 cpio:cpio depmod:kmod xz:xz-utils busybox:busybox-static sctp_test:lksctp-tools
	go test -timeout 40m -count=1 -v ./e2e/vm -kernel $(KERNEL) $(SUITE:%=-suite %)

FUZZTIME := 10s
# Known vulnerabilities of what Fairlead is made of.
vuln:
	.ci/vuln

fuzz:
	.ci/fuzz $(FUZZTIME)

bench: packages
	go test -run '^$$' -bench . ./...

# The data paths beside each other, and the page of docs that says so.
CANDIDATES := direct,iptables-legacy,iptables-nft,ebpf
bench-docs: packages build
	bin/fairlead-lab bench --suite full --candidates $(CANDIDATES) $(BENCH_FLAGS) --out bin/bench
	cp bin/bench/report.md docs/bench.md

lint:
	go tool -modfile=.tools/go.mod golangci-lint run ./...

# What it makes is committed, and is the same on every machine: with this compiler,
# which is Debian's.
generate:
	@.ci/packages clang-19:clang-19 llvm-strip-19:llvm-19 /usr/include/bpf/bpf_helpers.h:libbpf-dev
	go generate ./...

clean:
	rm -rf bin

# The programs that the demo and the tests call, and the Debian packages that
# have them: installed when missing, by root, and said.
packages:
	@.ci/packages ip:iproute2 iptables:iptables ip6tables:iptables conntrack:conntrack sysctl:procps nft:nftables
