/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Arguments of USDT probes. A site is identified by its address, because attach cookies need Linux
 * 5.15, and 5.8 is supported. OTP's text arguments point to a buffer that is valid during the
 * probe.
 */
#ifndef SCOPE_USDT_BPF_H
#define SCOPE_USDT_BPF_H

#include "scope.bpf.h"

struct usdt_site {
	struct usdt_argument arguments[USDT_ARGUMENTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256); /* OTP's allowed probes have 40 sites */
	__type(key, __u64);	  /* address in the target */
	__type(value, struct usdt_site);
} usdt_sites SEC(".maps");

/* One argument as 64 bits; 0 if the site or the argument's form is not known. */
static __noinline __u64 usdt_argument(struct pt_regs *ctx, __u32 index)
{
	__u64 ip = PT_REGS_IP(ctx), value = 0;
	struct usdt_argument *argument;
	struct usdt_site *site = bpf_map_lookup_elem(&usdt_sites, &ip);
	__u32 shift;

	if (!site || index >= USDT_ARGUMENTS)
		return 0;
	argument = &site->arguments[index];
	switch (argument->form) {
	case ARGUMENT_CONSTANT:
		return argument->value;
	case ARGUMENT_REGISTER:
	case ARGUMENT_MEMORY:
		/* The verifier allows no variable offset into the context, but a helper does. */
		if (bpf_probe_read_kernel(&value, sizeof(value), (void *)ctx + argument->reg))
			return 0;
		if (argument->form == ARGUMENT_REGISTER)
			break;
		value += argument->value;
		if (bpf_probe_read_user(&value, sizeof(value), (const void *)value))
			return 0;
		break;
	case ARGUMENT_ABSOLUTE:
		if (bpf_probe_read_user(&value, sizeof(value), (const void *)argument->value))
			return 0;
		break;
	default:
		return 0;
	}
	shift = (64 - argument->size * 8) & 63;
	if (argument->is_signed)
		return (__u64)((__s64)(value << shift) >> shift);
	return value << shift >> shift;
}

/*
 * "<0.82.0>" as number | serial << 32. 0 if the text is not a pid of this node, such as
 * "<9012.82.0>", a registered name, or a port.
 */
static __noinline __u64 text_pid(const char *address)
{
	__u64 number = 0, part = 0;
	char text[32] = {};
	__u32 i;

	if (bpf_probe_read_user_str(text, sizeof(text), address) < 0)
		return 0;
	if (text[0] != '<' || text[1] != '0' || text[2] != '.')
		return 0;
	for (i = 3; i < sizeof(text); i++) {
		char c = text[i];

		if (c == '>')
			return number | part << 32;
		if (c == '.') {
			number = part & 0xffffffff;
			part = 0;
		} else if (c >= '0' && c <= '9') {
			part = part * 10 + (c - '0');
		} else {
			return 0;
		}
	}
	return 0;
}

static __always_inline __u64 usdt_pid(struct pt_regs *ctx, __u32 index)
{
	return text_pid((const char *)usdt_argument(ctx, index));
}

#endif
