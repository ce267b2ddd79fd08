// SPDX-License-Identifier: Apache-2.0
/*
 * A node that is no BEAM, by OTP's erl_interface: cnode NAME ADDRESS PORT of a node to connect to.
 *
 * Commands on stdin, a line each, and answers on stdout:
 *   send N   N messages to dist_sink, which answers each; "sent N"
 *   read N   waits for N messages; "read N"
 * It answers ticks while it reads. The end of stdin is its own.
 */
#include <ei.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void fail(const char *what)
{
	fprintf(stderr, "%s fails: %d\n", what, erl_errno);
	exit(1);
}

static void send_all(ei_cnode *node, int link, int count)
{
	for (int i = 1; i <= count; i++) {
		ei_x_buff message;

		ei_x_new_with_version(&message);
		ei_x_encode_pid(&message, ei_self(node));
		if (ei_reg_send(node, link, "dist_sink", message.buff, message.index))
			fail("ei_reg_send");
		ei_x_free(&message);
	}
	printf("sent %d\n", count);
}

static void read_all(int link, int count)
{
	for (int left = count; left;) {
		erlang_msg about;
		ei_x_buff message;
		int got;

		ei_x_new(&message);
		got = ei_xreceive_msg(link, &about, &message);
		if (got == ERL_ERROR)
			fail("ei_xreceive_msg");
		left -= got == ERL_MSG;
		ei_x_free(&message);
	}
	printf("read %d\n", count);
}

int main(int argc, char **argv)
{
	ei_cnode node;
	char name[256], line[64];
	struct in_addr self = {0};
	int link;

	if (argc != 4 || ei_init())
		return 2;
	snprintf(name, sizeof(name), "%s@%s", argv[1], argv[2]);
	if (ei_connect_xinit(&node, argv[2], argv[1], name, &self, "planted", 1))
		fail("ei_connect_xinit");
	link = ei_connect_host_port(&node, argv[2], atoi(argv[3]));
	if (link < 0)
		fail("ei_connect_host_port");
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof(line), stdin)) {
		if (!strncmp(line, "send ", 5))
			send_all(&node, link, atoi(line + 5));
		else
			read_all(link, atoi(line + 5));
	}
	return 0;
}
