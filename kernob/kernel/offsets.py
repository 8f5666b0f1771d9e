# SPDX-License-Identifier: Apache-2.0
"""Where the struct fields are that bpf/ reads: macro name -> BTF path, older names behind newer ones.

Out: a mapping of -D macros for the compiler. Called by `compiler`. Adding a field is one line here
and one READ() in C.
"""

from __future__ import annotations

from kernob.errors import BtfError
from kernob.kernel.btf import Btf

FIELDS: dict[str, tuple[str, ...]] = {
    "OFF_SOCK_FAMILY": ("sock.__sk_common.skc_family",),
    "OFF_SOCK_PROTOCOL": ("sock.sk_protocol",),
    "OFF_SOCK_TYPE": ("sock.sk_type",),
    "OFF_SOCK_DPORT": ("sock.__sk_common.skc_dport",),
    "OFF_SOCK_NUM": ("sock.__sk_common.skc_num",),
    "OFF_INET_SPORT": ("inet_sock.inet_sport",),
    "OFF_SOCK_DADDR": ("sock.__sk_common.skc_daddr",),
    "OFF_SOCK_RCV_SADDR": ("sock.__sk_common.skc_rcv_saddr",),
    "OFF_SOCK_V6_DADDR": ("sock.__sk_common.skc_v6_daddr",),
    "OFF_SOCK_V6_RCV_SADDR": ("sock.__sk_common.skc_v6_rcv_saddr",),
    "OFF_SOCK_NET": ("sock.__sk_common.skc_net.net",),
    "OFF_NET_INUM": ("net.ns.inum",),
    "OFF_SKB_DEV": ("sk_buff.dev",),
    "OFF_DEVICE_NET": ("net_device.nd_net.net",),
    "OFF_SOCK_FLAGS": ("sock.__sk_common.skc_flags",),
    "OFF_TCP_COPIED_SEQ": ("tcp_sock.copied_seq",),
    "OFF_TCP_RCV_NXT": ("tcp_sock.rcv_nxt",),
    "OFF_SOCK_STATE": ("sock.__sk_common.skc_state",),
    "OFF_SOCK_ERR": ("sock.sk_err",),
    "OFF_SOCK_ERROR_QUEUE": ("sock.sk_error_queue",),
    "OFF_SKB_CB": ("sk_buff.cb",),
    "OFF_EXTERR_ERRNO": ("sock_exterr_skb.ee.ee_errno",),
    "OFF_SOCK_SHUTDOWN": ("sock.sk_shutdown",),
    "OFF_SOCK_LOCK_OWNED": ("sock.sk_lock.owned",),
    "OFF_SOCK_WRITE_PENDING": ("sock.sk_write_pending",),
    "OFF_SOCKET_STATE": ("socket.state",),
    "OFF_TCP_WRITE_SEQ": ("tcp_sock.write_seq",),
    "OFF_TCP_SND_UNA": ("tcp_sock.snd_una",),
    "OFF_TCP_SND_WND": ("tcp_sock.snd_wnd",),
    "OFF_TCP_SRTT_US": ("tcp_sock.srtt_us",),
    "OFF_TCP_LSNDTIME": ("tcp_sock.lsndtime",),
    "OFF_TCP_DATA_SEGS_OUT": ("tcp_sock.data_segs_out",),
    "OFF_TCP_TOTAL_RETRANS": ("tcp_sock.total_retrans",),
    "OFF_ICSK_RETRANSMITS": ("inet_connection_sock.icsk_retransmits",),
    "OFF_ICSK_LRCVTIME": ("inet_connection_sock.icsk_ack.lrcvtime",),
    "OFF_ICSK_BIND_HASH": ("inet_connection_sock.icsk_bind_hash",),
    "OFF_ICSK_ULP_OPS": ("inet_connection_sock.icsk_ulp_ops",),
    "OFF_BIND_BUCKET_FASTREUSE": ("inet_bind_bucket.fastreuse",),
    "OFF_SOCKET_SK": ("socket.sk",),
    "OFF_TASK_GROUP_LEADER": ("task_struct.group_leader",),
    "OFF_TASK_TGID": ("task_struct.tgid",),
    "OFF_TASK_PID": ("task_struct.pid",),
    "OFF_TASK_FLAGS": ("task_struct.flags",),
    "OFF_TASK_EXIT_CODE": ("task_struct.exit_code",),
    "OFF_TASK_START_TIME": ("task_struct.start_time",),
    "OFF_TASK_THREAD_PID": ("task_struct.thread_pid",),
    "OFF_TASK_COMM": ("task_struct.comm",),
    "OFF_TASK_REAL_PARENT": ("task_struct.real_parent",),
    "OFF_TASK_START_BOOTTIME": ("task_struct.start_boottime", "task_struct.real_start_time"),
    "OFF_TASK_SELF_EXEC_ID": ("task_struct.self_exec_id",),
    "OFF_TASK_NSPROXY": ("task_struct.nsproxy",),
    "OFF_NSPROXY_NET": ("nsproxy.net_ns",),
    # where a task in a 32-bit call is marked: x86_64, arm64 (bpf/syscalls.bpf.c has the bits)
    "OFF_TASK_COMPAT": ("task_struct.thread_info.status", "task_struct.thread_info.flags"),
    "OFF_TASK_SIGNAL": ("task_struct.signal",),
    "OFF_TASK_MM": ("task_struct.mm",),
    "OFF_TASK_CGROUPS": ("task_struct.cgroups",),
    "OFF_SIGNAL_LIVE": ("signal_struct.live",),
    "OFF_SIGNAL_NR_THREADS": ("signal_struct.nr_threads",),
    "OFF_SIGNAL_FLAGS": ("signal_struct.flags",),
    "OFF_SIGNAL_GROUP_EXIT_CODE": ("signal_struct.group_exit_code",),
    "OFF_SIGNAL_OOM_MM": ("signal_struct.oom_mm",),
    "OFF_PID_LEVEL": ("pid.level",),
    "OFF_PID_NUMBERS": ("pid.numbers",),
    "OFF_MM_EXE_FILE": ("mm_struct.exe_file",),
    "OFF_MM_ARG_START": ("mm_struct.arg_start",),
    "OFF_MM_ARG_END": ("mm_struct.arg_end",),
    "OFF_TASK_FILES": ("task_struct.files",),
    "OFF_FILES_FDT": ("files_struct.fdt",),
    "OFF_FDTABLE_FD": ("fdtable.fd",),
    "OFF_FDTABLE_MAX": ("fdtable.max_fds",),
    "OFF_FILE_PRIVATE": ("file.private_data",),
    "OFF_FILE_INODE": ("file.f_inode",),
    "OFF_INODE_MODE": ("inode.i_mode",),
    "OFF_FILE_DENTRY": ("file.f_path.dentry",),
    "OFF_DENTRY_NAME": ("dentry.d_name.name", "dentry.__d_name.name"),
    "OFF_EVENTPOLL_RBR": ("eventpoll.rbr",),
    "OFF_EPITEM_RBN": ("epitem.rbn",),
    "OFF_EPITEM_FILE": ("epitem.ffd.file",),
    "OFF_EPITEM_EVENTS": ("epitem.event.events",),
    "OFF_RB_LEFT": ("rb_node.rb_left",),
    "OFF_RB_RIGHT": ("rb_node.rb_right",),
    "OFF_CSS_SET_DFL_CGRP": ("css_set.dfl_cgrp",),
    "OFF_CSS_SET_SUBSYS": ("css_set.subsys",),
    "OFF_CSS_CGROUP": ("cgroup_subsys_state.cgroup",),
    "OFF_CGROUP_KN": ("cgroup.kn",),
    "OFF_REGS_CALL": ("pt_regs.orig_ax", "pt_regs.syscallno"),
    "OFF_REGS_SECOND": ("pt_regs.si", "pt_regs.regs"),
    "OFF_KERNFS_NODE_NAME": ("kernfs_node.name",),
    "OFF_KERNFS_NODE_PARENT": ("kernfs_node.parent", "kernfs_node.__parent"),
    "OFF_KERNFS_NODE_ID": ("kernfs_node.id",),
}

# cgroup v1 controllers whose paths follow units and containers, best first
_V1_CONTROLLERS = ("pids_cgrp_id", "memory_cgrp_id", "cpu_cgrp_id")


def from_btf(btf: Btf) -> dict[str, int]:
    """Macro -> value for this kernel. Raises BtfError naming the first field that no name finds."""
    macros = {}
    for macro, paths in FIELDS.items():
        macros[macro] = _first(btf, paths)
    for controller in _V1_CONTROLLERS:
        index = btf.enum_value("cgroup_subsys_id", controller)
        if index is not None:
            macros["CGROUP_V1_SUBSYS"] = index
            break
    return macros


def _first(btf: Btf, paths: tuple[str, ...]) -> int:
    reason: BtfError | None = None
    for path in paths:
        try:
            return btf.offset(path)
        except BtfError as error:
            reason = error
    raise reason or BtfError("no path given")
