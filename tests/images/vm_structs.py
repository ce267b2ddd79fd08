# SPDX-License-Identifier: Apache-2.0
"""
What images are made of: fields by struct, in the names of the VM's own source.
"""

from __future__ import annotations

from typing import Final

#: What is made of each struct. Whatever else it has is zero, or noise.
FIELDS: Final = {
    name: ["sizeof", *fields.split()]
    for name, fields in {
        "Process": (
            "common.id common.u.alive.reg common.u.alive.links common.u.alive.monitors "
            "common.u.alive.lt_monitors htop stop heap hend heap_sz abandoned_heap arity arg_reg "
            "def_arg_reg i reds flags group_leader sig_qs.first sig_qs.last sig_qs.cont sig_qs.len "
            "sig_qs.mq_len sig_qs.save dictionary current parent u.initial.module "
            "u.initial.function u.initial.arity old_heap old_hend old_htop gen_gcs max_gen_gcs "
            "mbuf mbuf_sz psd state sig_inq.first sig_inq.len sig_inq.mlenoffs lock.flags "
            "off_heap.overhead bin_old_vheap fcalls"
        ),
        "ErtsPTab": (
            "vola.tile.last_data vola.tile.count vola.tile.aid_ix vola.tile.fid_ix r.o.tab "
            "r.o.free_id_data r.o.max r.o.pix_mask r.o.pix_cl_mask r.o.pix_cl_shift "
            "r.o.pix_cli_mask r.o.pix_cli_shift r.o.invalid_element r.o.element_size"
        ),
        "Port": "common.id connected state",
        "RegProc": "p pt name",
        "IndexTable": "htable.name size limit entries seg_table",
        "Atom": "slot.index len name u.bin",
        "ErlNode": "sysname dist_entry",
        "DistEntry": (
            "next prev sysname state qflgs qsize total_qsize in out suspended connection_id cid"
        ),
        "ErtsProcList": "u.pid next prev",
        "ErtsMessage": "next data m hfrag.next hfrag.alloc_size hfrag.used_size hfrag.mem",
        "ErlHeapFragment": "next alloc_size used_size mem",
        "ErtsRunQueue": (
            "ix scheduler flags len max_len waiting woken procs.context_switches procs.reductions "
            "procs.prio_info ports.info.len ports.info.max_len misc.start misc.end wakeup_other "
            "full_reds_history_sum out_of_work_count"
        ),
        "ErtsAlignedRunQueue": "",
        "ErtsSchedulerData": (
            "ssi current_process type no dirty_no flxctr_slot_no current_nif current_port "
            "run_queue virtual_reds aux_work_data.esdp aux_work_data.ssi last_monotonic_time "
            "last_os_monotonic_time check_time_reds thr_id unique ref io.out io.in "
            "pending_signal.sig pending_signal.to reductions rand_state sched_wall_time.enabled "
            "sched_wall_time.start sched_wall_time.working.total sched_wall_time.working.start "
            "gc_info.reclaimed gc_info.garbage_cols nosuspend_port_task_handle ets_tables.count "
            "ets_tables.clist"
        ),
        "ErtsAlignedSchedulerData": "",
        "ErtsSchedulerSleepInfo": "esdp flags",
        "ranges": "modules n allocated mid",
        "BeamCodeHeader": "num_functions attr_ptr attr_size line_table functions",
        "BeamCodeLineTab": "fname_ptr loc_size loc_tab func_tab",
        "ErtsCodeInfo": "mfa.module mfa.function mfa.arity",
        "Module": "slot.index module curr.code_hdr old.code_hdr",
        "ErtsMonLnkNode": (
            "node.tree.parent node.tree.right node.tree.left node.list.next node.list.prev other "
            "offset key_offset flags type"
        ),
        "ErtsMonitorData": "origin u.target ref refc",
        "ErtsMonitorDataHeap": "",
        "ErtsMonitorSuspend": "",
        "ErtsILink": "",
        "ErtsLinkData": "",
        "ErtsPSD": "",
        "DbTable": "",
        "DbTableCommon": "all.next all.prev type keypos",
        "Allctr_t": (
            "name_prefix alloc_no ix cpool.util_limit cpool.stat.blocks_size cpool.stat.no_blocks "
            "cpool.stat.carriers_size cpool.stat.no_carriers fix sbcs.carriers sbcs.blocks "
            "mbcs.carriers mbcs.blocks"
        ),
        "ErtsAlcFixList_t": (
            "type_size list_size type u.cpool.allocated u.cpool.used u.nocpool.allocated "
            "u.nocpool.used"
        ),
    }.items()
}
