/* SPDX-License-Identifier: GPL-2.0-only */
/* Which build an object is of: kernel/bpf/objects.py compares it, libbpf skips it. */
#ifndef SCOPE_BUILD_H
#define SCOPE_BUILD_H

const char build[] __attribute__((section(".build"), used)) = "scope-ebpf build " BUILD;

#endif
