// SPDX-License-Identifier: Apache-2.0
// All programs in one object, which share the maps.
#include "sock.c"
#include "packet.c"

char _license[] SEC("license") = "GPL";

// What Go is to know: the compiler describes a type only if something is of it.
const struct {
	enum class class;
	enum verdict verdict;
	enum frontend_flags frontend;
	enum pool_flags pool;
	enum member member;
	enum outcome outcome;
	enum stage stage;
	enum direction direction;
	enum flows_are flows_are;
	struct report report;
} *for_go __attribute__((unused));
