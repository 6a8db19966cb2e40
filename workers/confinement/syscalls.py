"""Lists the system calls that a worker is refused, and their numbers by architecture."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Architecture:
    """Holds the numbers of a kernel's calls; ``audit`` is the architecture's own in a filter's
    data."""

    audit: int
    seccomp: int
    numbers: dict[str, int]
    has_x32: bool = False


#: Refused whatever the arguments, by reason; the numbers on x86-64 and on aarch64, None for none.
_FORBIDDEN: dict[str, dict[str, tuple[int | None, int | None]]] = {
    "another process's memory and files": {
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
        "pidfd_getfd": (438, 438),
        "pidfd_send_signal": (424, 424),
        "process_madvise": (440, 440),
        "process_mrelease": (448, 448),
        "tkill": (200, 130),
    },
    "the group of processes, which is ended with the worker": {
        "setsid": (112, 157),
        "setpgid": (109, 154),
    },
    "parts of the kernel that engines do not use, and that were often its holes": {
        "bpf": (321, 280),
        "userfaultfd": (323, 282),
        "perf_event_open": (298, 241),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
        "keyctl": (250, 219),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "lookup_dcookie": (212, 18),
        "personality": (135, 92),
        "modify_ldt": (154, None),
    },
    "the machine itself": {
        "kexec_load": (246, 104),
        "kexec_file_load": (320, 294),
        "init_module": (175, 105),
        "finit_module": (313, 273),
        "delete_module": (176, 106),
        "reboot": (169, 142),
        "swapon": (167, 224),
        "swapoff": (168, 225),
        "sethostname": (170, 161),
        "setdomainname": (171, 162),
        "acct": (163, 89),
        "quotactl": (179, 60),
        "quotactl_fd": (443, 443),
        "syslog": (103, 116),
        "settimeofday": (164, 170),
        "clock_settime": (227, 112),
        "clock_adjtime": (305, 266),
        "adjtimex": (159, 171),
        "iopl": (172, None),
        "ioperm": (173, None),
        "vhangup": (153, 58),
    },
    "namespaces and mounts, which would undo the rules for files": {
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "move_mount": (429, 429),
        "open_tree": (428, 428),
        "open_tree_attr": (467, 467),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "unshare": (272, 97),
        "setns": (308, 268),
    },
    "files by other ways than by opening them, which Landlock does not see": {
        "open_by_handle_at": (304, 265),
        "name_to_handle_at": (303, 264),
        "fanotify_init": (300, 262),
        "fanotify_mark": (301, 263),
        "inotify_init": (253, None),
        "inotify_init1": (294, 26),
        "inotify_add_watch": (254, 27),
        "truncate": (76, 45),
        "mknod": (133, None),
        "mknodat": (259, 33),
        "chmod": (90, None),
        "fchmod": (91, 52),
        "fchmodat": (268, 53),
        "fchmodat2": (452, 452),
        "chown": (92, None),
        "lchown": (94, None),
        "fchown": (93, 55),
        "fchownat": (260, 54),
        "setxattr": (188, 5),
        "lsetxattr": (189, 6),
        "fsetxattr": (190, 7),
        "setxattrat": (463, 463),
        "removexattr": (197, 14),
        "lremovexattr": (198, 15),
        "fremovexattr": (199, 16),
        "removexattrat": (466, 466),
        "file_setattr": (469, 469),
        "utime": (132, None),
        "utimes": (235, None),
        "futimesat": (261, None),
        "utimensat": (280, 88),
    },
    "memory and messages that all processes of a user share": {
        "shmget": (29, 194),
        "shmat": (30, 196),
        "shmctl": (31, 195),
        "msgget": (68, 186),
        "msgsnd": (69, 189),
        "msgrcv": (70, 188),
        "msgctl": (71, 187),
        "semget": (64, 190),
        "semop": (65, 193),
        "semtimedop": (220, 192),
        "semctl": (66, 191),
        "mq_open": (240, 180),
        "mq_unlink": (241, 181),
    },
}

#: Allowed for some arguments only.
_CHECKED: dict[str, tuple[int | None, int | None]] = {
    "execve": (59, 221),
    "execveat": (322, 281),
    "fork": (57, None),
    "vfork": (58, None),
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "kill": (62, 129),
    "tgkill": (234, 131),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "prlimit64": (302, 261),
    "setpriority": (141, 140),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
}

#: Which argument names a process, and which it may be: its own id, 0 for itself, or both.
OF_PROCESSES: dict[str, tuple[int, Literal["pid", "self", "both"]]] = {
    "kill": (0, "pid"),
    "tgkill": (0, "pid"),
    "rt_sigqueueinfo": (0, "pid"),
    "rt_tgsigqueueinfo": (0, "pid"),
    "prlimit64": (0, "both"),
    "setpriority": (1, "both"),
    "sched_setscheduler": (0, "both"),
    "sched_setparam": (0, "both"),
    "sched_setattr": (0, "both"),
    "ioprio_set": (1, "both"),
}

FORBIDDEN: tuple[str, ...] = tuple(name for group in _FORBIDDEN.values() for name in group)


def _numbers(column: int) -> dict[str, int]:
    found: dict[str, int] = {}
    for group in (*_FORBIDDEN.values(), _CHECKED):
        for name, numbers in group.items():
            number = numbers[column]
            if number is not None:
                found[name] = number
    return found


ARCHITECTURES = {
    "x86_64": Architecture(0xC000003E, 317, _numbers(0), has_x32=True),
    "aarch64": Architecture(0xC00000B7, 277, _numbers(1)),
}
