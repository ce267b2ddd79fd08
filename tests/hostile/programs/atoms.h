/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The first atoms of every VM: without them a process that looks like one gets no hooks.
 * As OTP-25.2.3 has them (erts/emulator/beam/index.h, atom.h).
 */
struct atom {
	char slot[16];
	int index;
	int unused;
	short len;
	char more[6];
	const char *name;
};

static struct atom atoms[] = {{.index = 0, .len = 5, .name = "false"},
			      {.index = 1, .len = 4, .name = "true"}};
static struct atom *first_atoms[1024] = {&atoms[0], &atoms[1]};
static struct atom **atom_pages[] = {first_atoms};

struct {
	char hash[116];
	int entries;
	struct atom ***pages;
} erts_atom_table = {.entries = 2, .pages = atom_pages};
