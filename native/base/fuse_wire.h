/* The FUSE protocol as the kernel speaks it, for what the oldest linux/fuse.h supported (6.1,
 * protocol 7.38) lacks and newer ones call by other names. The layout of a message never changes,
 * the names in the header do: nothing here or elsewhere uses a field that was once padding.
 */
#ifndef HM_FUSE_WIRE_H
#define HM_FUSE_WIRE_H

#include <linux/fuse.h>
#include <linux/ioctl.h>
#include <stddef.h>
#include <stdint.h>

/* ---- newer than the oldest header ----------------------------------------------------------- */

#define HM_FUSE_TMPFILE 51                   /* 7.37 */
#define HM_FUSE_FLAGS2_PASSTHROUGH (1u << 5) /* 7.40, bit 37 of the INIT flags */
#define HM_FUSE_OPEN_PASSTHROUGH (1u << 7)   /* 7.40, of open_flags */

struct hm_fuse_init_in {
    uint32_t major, minor, max_readahead, flags;
    uint32_t flags2; /* if flags has FUSE_INIT_EXT */
};

struct hm_fuse_init_out {
    uint32_t major, minor, max_readahead, flags;
    uint16_t max_background, congestion_threshold;
    uint32_t max_write, time_gran;
    uint16_t max_pages, map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth; /* 7.40; zeros follow */
    uint32_t reserved[6];
};

struct hm_fuse_open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id; /* 7.40 */
};

struct hm_fuse_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t reserved;
};

#define HM_FUSE_BACKING_OPEN _IOW(229, 1, struct hm_fuse_backing_map)
#define HM_FUSE_BACKING_CLOSE _IOW(229, 2, uint32_t)

/* ---- the places of all that is read or written ---------------------------------------------- */

#define HM_FUSE_AT(type, field, offset)                                                            \
    _Static_assert(offsetof(struct type, field) == (offset), #type "." #field)
#define HM_FUSE_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)

HM_FUSE_SIZE(hm_fuse_init_in, 20);
HM_FUSE_AT(hm_fuse_init_in, flags, 12);
HM_FUSE_AT(hm_fuse_init_in, flags2, 16);

HM_FUSE_SIZE(hm_fuse_init_out, 64);
HM_FUSE_AT(hm_fuse_init_out, max_readahead, 8);
HM_FUSE_AT(hm_fuse_init_out, flags, 12);
HM_FUSE_AT(hm_fuse_init_out, max_background, 16);
HM_FUSE_AT(hm_fuse_init_out, congestion_threshold, 18);
HM_FUSE_AT(hm_fuse_init_out, max_write, 20);
HM_FUSE_AT(hm_fuse_init_out, time_gran, 24);
HM_FUSE_AT(hm_fuse_init_out, max_pages, 28);
HM_FUSE_AT(hm_fuse_init_out, flags2, 32);
HM_FUSE_AT(hm_fuse_init_out, max_stack_depth, 36);

HM_FUSE_SIZE(hm_fuse_open_out, 16);
HM_FUSE_AT(hm_fuse_open_out, open_flags, 8);
HM_FUSE_AT(hm_fuse_open_out, backing_id, 12);

HM_FUSE_SIZE(hm_fuse_backing_map, 16);
HM_FUSE_AT(hm_fuse_backing_map, fd, 0);

HM_FUSE_SIZE(fuse_in_header, 40);
HM_FUSE_AT(fuse_in_header, len, 0);
HM_FUSE_AT(fuse_in_header, opcode, 4);
HM_FUSE_AT(fuse_in_header, unique, 8);
HM_FUSE_AT(fuse_in_header, nodeid, 16);
HM_FUSE_AT(fuse_in_header, uid, 24);
HM_FUSE_AT(fuse_in_header, pid, 32);

HM_FUSE_SIZE(fuse_out_header, 16);
HM_FUSE_AT(fuse_out_header, len, 0);
HM_FUSE_AT(fuse_out_header, error, 4);
HM_FUSE_AT(fuse_out_header, unique, 8);

HM_FUSE_SIZE(fuse_read_in, 40);
HM_FUSE_AT(fuse_read_in, fh, 0);
HM_FUSE_AT(fuse_read_in, offset, 8);
HM_FUSE_AT(fuse_read_in, size, 16);
HM_FUSE_AT(fuse_read_in, read_flags, 20);
HM_FUSE_AT(fuse_read_in, flags, 32);

HM_FUSE_SIZE(fuse_write_in, 40);
HM_FUSE_AT(fuse_write_in, fh, 0);
HM_FUSE_AT(fuse_write_in, offset, 8);
HM_FUSE_AT(fuse_write_in, size, 16);
HM_FUSE_AT(fuse_write_in, write_flags, 20);

HM_FUSE_SIZE(fuse_write_out, 8);
HM_FUSE_AT(fuse_write_out, size, 0);

HM_FUSE_SIZE(fuse_copy_file_range_in, 56);
HM_FUSE_AT(fuse_copy_file_range_in, off_in, 8);
HM_FUSE_AT(fuse_copy_file_range_in, nodeid_out, 16);
HM_FUSE_AT(fuse_copy_file_range_in, off_out, 32);
HM_FUSE_AT(fuse_copy_file_range_in, len, 40);

HM_FUSE_SIZE(fuse_getxattr_in, 8);
HM_FUSE_AT(fuse_getxattr_in, size, 0);

HM_FUSE_SIZE(fuse_getxattr_out, 8);
HM_FUSE_AT(fuse_getxattr_out, size, 0);

HM_FUSE_SIZE(fuse_setattr_in, 88);
HM_FUSE_AT(fuse_setattr_in, valid, 0);

HM_FUSE_SIZE(fuse_poll_out, 8);
HM_FUSE_AT(fuse_poll_out, revents, 0);

HM_FUSE_SIZE(fuse_attr_out, 104);
HM_FUSE_AT(fuse_attr_out, attr, 16);
HM_FUSE_AT(fuse_attr, ino, 0);
HM_FUSE_AT(fuse_attr, size, 8);
HM_FUSE_AT(fuse_attr, blocks, 16);
HM_FUSE_AT(fuse_attr, atime, 24);
HM_FUSE_AT(fuse_attr, mtime, 32);
HM_FUSE_AT(fuse_attr, ctime, 40);
HM_FUSE_AT(fuse_attr, atimensec, 48);
HM_FUSE_AT(fuse_attr, mtimensec, 52);
HM_FUSE_AT(fuse_attr, ctimensec, 56);
HM_FUSE_AT(fuse_attr, mode, 60);
HM_FUSE_AT(fuse_attr, nlink, 64);
HM_FUSE_AT(fuse_attr, uid, 68);
HM_FUSE_AT(fuse_attr, gid, 72);
HM_FUSE_AT(fuse_attr, blksize, 80);

HM_FUSE_SIZE(fuse_lseek_in, 24);
HM_FUSE_AT(fuse_lseek_in, fh, 0);
HM_FUSE_AT(fuse_lseek_in, offset, 8);
HM_FUSE_AT(fuse_lseek_in, whence, 16);
HM_FUSE_SIZE(fuse_lseek_out, 8);

HM_FUSE_SIZE(fuse_fallocate_in, 32);
HM_FUSE_AT(fuse_fallocate_in, fh, 0);
HM_FUSE_AT(fuse_fallocate_in, offset, 8);
HM_FUSE_AT(fuse_fallocate_in, length, 16);
HM_FUSE_AT(fuse_fallocate_in, mode, 24);

HM_FUSE_SIZE(fuse_ioctl_in, 32);
HM_FUSE_AT(fuse_ioctl_in, fh, 0);
HM_FUSE_AT(fuse_ioctl_in, flags, 8);
HM_FUSE_AT(fuse_ioctl_in, cmd, 12);
HM_FUSE_AT(fuse_ioctl_in, in_size, 24);
HM_FUSE_AT(fuse_ioctl_in, out_size, 28);
HM_FUSE_SIZE(fuse_ioctl_out, 16);

HM_FUSE_SIZE(fuse_interrupt_in, 8);
HM_FUSE_SIZE(fuse_getxattr_in, 8); /* the name follows */
HM_FUSE_AT(fuse_entry_out, nodeid, 0);

HM_FUSE_SIZE(fuse_notify_inval_inode_out, 24);
HM_FUSE_AT(fuse_notify_inval_inode_out, ino, 0);
HM_FUSE_AT(fuse_notify_inval_inode_out, off, 8);
HM_FUSE_AT(fuse_notify_inval_inode_out, len, 16);

#undef HM_FUSE_AT
#undef HM_FUSE_SIZE

#endif
