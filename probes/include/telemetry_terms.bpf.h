/* SPDX-License-Identifier: GPL-2.0-only */
/* Parts of terms: the value of a key, the element of a tuple, the bytes of a binary. */
#ifndef TELEMETRY_TERMS_BPF_H
#define TELEMETRY_TERMS_BPF_H

#include "telemetry_maps.bpf.h"
#include "terms.bpf.h"

/* Subtags of binaries (OTP-25.2.3 and OTP-27.3.4.1 erl_term.h). */
#define HEAP_BINARY 0x24
#define REFC_BINARY 0x20
#define SUB_BINARY  0x28
#define HEAP_BITS   0x20
#define SUB_BITS    0x24

/* Read the keys of a map, unless they are there from the label before; false if it has none. */
static __noinline bool load_map(struct scratch *own, __u64 map)
{
	__u64 header[3] = {};
	__u32 bytes;

	if (!own)
		return false;
	if (own->map == map)
		return own->size > 0;
	own->map = map;
	own->size = 0;
	if (read(header, sizeof(header), untag(map))) {
		own->unreadable = 1;
		return false;
	}
	if (header_subtag(header[0]) != settings.map_subtag)
		return false;
	if (!is_flatmap_header(header[0]) || header[1] > FLATMAP_KEYS) {
		own->large_map = 1;
		return false;
	}
	bytes = (header[1] & 63) * sizeof(__u64);
	if (!bytes || bytes > sizeof(own->keys))
		return false;
	if (read(own->keys, bytes, untag(header[2]) + sizeof(__u64))) {
		own->unreadable = 1;
		return false;
	}
	own->size = header[1];
	return true;
}

/* The value of an atom in a map; 0 if there is none. */
static __noinline __u64 value_of(struct scratch *own, __u64 map, __u64 key)
{
	__u64 value = 0;

	if (!own || !key || !is_boxed(map) || !load_map(own, map))
		return 0;
	for (__u32 i = 0; i < FLATMAP_KEYS; i++) {
		if (i >= own->size)
			break;
		if (own->keys[i] != key)
			continue;
		if (read(&value, sizeof(value), untag(map) + (3 + i) * sizeof(__u64)))
			own->unreadable = 1;
		return value;
	}
	return 0;
}

/* Element *number* of a tuple, from 0; 0 if there is none. */
static __noinline __u64 element_of(struct scratch *own, __u64 tuple, __u64 number)
{
	__u64 header = 0, value = 0;

	if (!own || !is_boxed(tuple))
		return 0;
	if (read(&header, sizeof(header), untag(tuple))) {
		own->unreadable = 1;
		return 0;
	}
	if (!is_tuple_header(header) || number >= tuple_arity(header))
		return 0;
	if (read(&value, sizeof(value), untag(tuple) + (1 + number) * sizeof(__u64)))
		own->unreadable = 1;
	return value;
}

/*
 * What names an exception: the struct of a map, the first element of a tuple, else the term. Plug
 * puts an exception of a controller into another one (Plug.Conn.WrapperError).
 */
static __noinline __u64 class_of(struct scratch *own, const struct telemetry_spec *spec, __u64 term)
{
	__u64 name;

	if (!own || !spec || !is_boxed(term))
		return term;
	name = value_of(own, term, spec->struct_key);
	if (name && name == spec->wrapper) {
		term = value_of(own, term, spec->wrapped);
		if (!is_boxed(term))
			return term;
		name = value_of(own, term, spec->struct_key);
	}
	if (name)
		return name;
	name = element_of(own, term, 0);
	return name ? name : term;
}

/* Where the bytes of a binary lie and how many there are; 0 if it is none of whole bytes. */
static __noinline __u64 bytes_of_25(struct scratch *own, __u64 term, __u64 *size)
{
	__u64 binary[5] = {}, under[5] = {};
	const void *at = untag(term);

	if (!own || !size)
		return 0;
	/* A heap binary may be shorter than what is read, so it may end at the end of memory. */
	if (read(binary, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	*size = binary[1];
	if (header_subtag(binary[0]) == HEAP_BINARY)
		return (__u64)at + 16;
	if (header_subtag(binary[0]) != REFC_BINARY && header_subtag(binary[0]) != SUB_BINARY)
		return 0;
	if (read(binary, sizeof(binary), at)) {
		own->unreadable = 1;
		return 0;
	}
	if (header_subtag(binary[0]) == REFC_BINARY)
		return binary[4];
	if (binary[3] & 0xffff)
		return 0; /* it begins or ends within a byte: bitsize, bitoffs */
	at = untag(binary[4]);
	if (read(under, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	if (header_subtag(under[0]) == HEAP_BINARY)
		return (__u64)at + 16 + binary[2];
	if (header_subtag(under[0]) != REFC_BINARY)
		return 0;
	if (read(under, sizeof(under), at)) {
		own->unreadable = 1;
		return 0;
	}
	return under[4] + binary[2];
}

static __noinline __u64 bytes_of_27(struct scratch *own, __u64 term, __u64 *size)
{
	__u64 bits[4] = {};
	const void *at = untag(term);

	if (!own || !size)
		return 0;
	if (read(bits, 16, at)) {
		own->unreadable = 1;
		return 0;
	}
	*size = bits[1] >> 3;
	if (header_subtag(bits[0]) == HEAP_BITS)
		return bits[1] & 7 ? 0 : (__u64)at + 16;
	if (header_subtag(bits[0]) != SUB_BITS)
		return 0;
	if (read(bits, sizeof(bits), at)) {
		own->unreadable = 1;
		return 0;
	}
	if ((bits[2] | bits[3]) & 7)
		return 0; /* it begins or ends within a byte */
	*size = (bits[3] - bits[2]) >> 3;
	return (bits[1] & ~3ULL) + (bits[2] >> 3);
}

#endif
