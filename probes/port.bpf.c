/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * port: ports are opened, closed, and become busy.
 *
 * Hooks:  erts_open_driver entry and return, erts_deliver_port_exit, set_busy_port or its copy;
 *         or erlang:port__open, port__exit, port__busy, port__not_busy
 * Counts: port_open that succeeded, port_close, port_busy by busy and not_busy; how long ports were
 *         busy, by symbol
 * Emits:  port_open, port_close, port_busy
 */
#include "usdt.bpf.h"

/* erl_port.h, OTP 24 to 29: the states in which a port is not open. */
#define PORT_EXITING	  (1 << 1)
#define PORT_CLOSING	  (1 << 5)
#define PORT_FREE	  (1 << 8)
#define PORT_INITIALIZING (1 << 9)

struct opening {
	__u64 owner, name;
};

/* Opens under way, by thread; removed by the return probe of the same call. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_THREADS);
	__type(key, __u32);
	__type(value, struct opening);
} openings SEC(".maps");

SEC("uprobe")
int BPF_KPROBE(port_open_entry, __u64 driver, __u64 owner, __u64 name)
{
	struct opening opening = {.owner = owner, .name = name};
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_OPEN_ENTRY, &tid))
		return 0;
	if (bpf_map_update_elem(&openings, &tid, &opening, BPF_ANY))
		count_failure(KIND_PORT_OPEN);
	return 0;
}

SEC("uretprobe")
int BPF_KRETPROBE(port_open_return, __u64 port)
{
	struct port_open_record *open;
	struct opening *opening;
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_OPEN_RETURN, &tid))
		return 0;
	opening = bpf_map_lookup_elem(&openings, &tid);
	if (!port) { /* the driver did not start */
		bpf_map_delete_elem(&openings, &tid);
		return 0;
	}
	if (!is_wanted(0, opening ? opening->owner : 0)) {
		bpf_map_delete_elem(&openings, &tid);
		return 0;
	}
	count_event(KIND_PORT_OPEN, 0);
	open = reserve_record(KIND_PORT_OPEN, 0, 0, tid, opening ? opening->owner : 0);
	if (open) {
		open->port = id_of(KIND_PORT_OPEN, port);
		if (opening && bpf_probe_read_user_str(open->name, sizeof(open->name),
						       (const void *)opening->name) < 0)
			count_failure(KIND_PORT_OPEN);
		submit_record(open);
	}
	bpf_map_delete_elem(&openings, &tid);
	return 0;
}

SEC("uprobe")
int BPF_KPROBE(port_open_usdt)
{
	struct port_open_record *open;
	__u64 process;
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_OPEN_USDT, &tid))
		return 0;
	process = usdt_pid(ctx, 0);
	if (!is_wanted(FLAG_TEXT_PID, process))
		return 0;
	count_event(KIND_PORT_OPEN, 0);
	open = reserve_record(KIND_PORT_OPEN, 0, FLAG_TEXT_PID, tid, process);
	if (open) {
		if (bpf_probe_read_user_str(open->name, sizeof(open->name),
					    (const void *)usdt_argument(ctx, 1)) < 0)
			count_failure(KIND_PORT_OPEN);
		submit_record(open);
	}
	return 0;
}

static __always_inline int count_close(__u8 flags, __u32 tid, __u64 from, __u64 port, __u64 reason)
{
	struct port_close_record *close;

	if (!is_wanted(flags, from))
		return 0;
	count_event(KIND_PORT_CLOSE, 0);
	close = reserve_record(KIND_PORT_CLOSE, 0, flags, tid, from);
	if (close) {
		close->port = port;
		close->reason = reason;
		submit_record(close);
	}
	return 0;
}

/*
 * Whether erts_deliver_port_exit closes the port. It does nothing for a port that is closing
 * already, nor for a normal exit of a process that is linked to the port but does not own it
 * (OTP-25.2.3 io.c).
 */
static __always_inline bool closes(__u8 kind, __u64 port, __u64 id, __u64 from, __u64 reason,
				   __u32 drop_normal)
{
	if ((__u32)vm_field(kind, port, settings.port_state) &
	    (PORT_EXITING | PORT_CLOSING | PORT_FREE | PORT_INITIALIZING))
		return false;
	return !(drop_normal && target.am_normal && reason == target.am_normal && from != id &&
		 from != vm_field(kind, port, settings.port_connected));
}

SEC("uprobe")
int BPF_KPROBE(port_close_entry, __u64 port, __u64 from, __u64 reason, __u64 send_closed,
	       __u32 drop_normal)
{
	__u64 id;
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_CLOSE_ENTRY, &tid))
		return 0;
	id = id_of(KIND_PORT_CLOSE, port);
	if (!closes(KIND_PORT_CLOSE, port, id, from, reason, drop_normal))
		return 0;
	return count_close(0, tid, from, id, reason);
}

SEC("uprobe")
int BPF_KPROBE(port_close_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_CLOSE_USDT, &tid))
		return 0;
	return count_close(FLAG_TEXT_PID, tid, usdt_pid(ctx, 0), 0, 0);
}

/* Since when each port is busy. A port that closes is marked not busy, which removes it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, __u64);
} busy_ports SEC(".maps");

/* With windows, only ports that become busy and not busy again in one window have a duration. */
static __always_inline void observe_busy(__u8 class, __u64 port)
{
	__u64 now = bpf_ktime_get_ns(), *since;

	if (class == PORT_BUSY_BUSY) {
		bpf_map_update_elem(&busy_ports, &port, &now, BPF_NOEXIST);
		return;
	}
	since = bpf_map_lookup_elem(&busy_ports, &port);
	if (!since)
		return;
	if (!started_before_gate(KIND_PORT_BUSY, *since))
		observe_duration(KIND_PORT_BUSY, PORT_BUSY_BUSY, now - *since);
	bpf_map_delete_elem(&busy_ports, &port);
}

static __always_inline int count_busy(__u8 class, __u8 flags, __u32 tid, __u64 owner, __u64 port)
{
	struct port_busy_record *busy;

	count_event(KIND_PORT_BUSY, class);
	busy = reserve_record(KIND_PORT_BUSY, class, flags, tid, owner);
	if (busy) {
		busy->port = port;
		submit_record(busy);
	}
	return 0;
}

static __always_inline int mark_busy(__u8 class, __u32 tid, __u64 port, __u64 id)
{
	__u64 owner = vm_field(KIND_PORT_BUSY, port, settings.port_connected);

	if (!is_wanted(0, owner))
		return 0;
	observe_busy(class, id);
	return count_busy(class, 0, tid, owner, id);
}

SEC("uprobe")
int BPF_KPROBE(port_busy_entry, __u64 port, __u32 on)
{
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_BUSY_ENTRY, &tid))
		return 0;
	return mark_busy(on ? PORT_BUSY_BUSY : PORT_BUSY_NOT_BUSY, tid, port,
			 id_of(KIND_PORT_BUSY, port));
}

/* erts_deliver_port_exit, where the compiler has put a copy of set_busy_port(Port, 0) into it. */
SEC("uprobe")
int BPF_KPROBE(port_busy_copy, __u64 port, __u64 from, __u64 reason, __u64 send_closed,
	       __u32 drop_normal)
{
	__u64 id;
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_BUSY_COPY, &tid))
		return 0;
	id = id_of(KIND_PORT_BUSY, port);
	if (!closes(KIND_PORT_BUSY, port, id, from, reason, drop_normal))
		return 0;
	return mark_busy(PORT_BUSY_NOT_BUSY, tid, port, id);
}

SEC("uprobe")
int BPF_KPROBE(port_busy_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_BUSY_USDT, &tid))
		return 0;
	return count_busy(PORT_BUSY_BUSY, FLAG_TEXT_PID, tid, 0, 0);
}

SEC("uprobe")
int BPF_KPROBE(port_not_busy_usdt)
{
	__u32 tid;

	if (!enter_program(PROGRAM_PORT_NOT_BUSY_USDT, &tid))
		return 0;
	return count_busy(PORT_BUSY_NOT_BUSY, FLAG_TEXT_PID, tid, 0, 0);
}

char LICENSE[] SEC("license") = "GPL";
