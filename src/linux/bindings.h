/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen sees for our own declarations: the helpers, and constants that are macros with casts (which bindgen
 * does not see by itself).
 */
#include <linux/crc32.h>
#include "helpers.h"

/* ---- block side ---- */

const u32 DRBD_CONST_REQ_OP_READ = (u32)REQ_OP_READ;
const u32 DRBD_CONST_REQ_OP_WRITE = (u32)REQ_OP_WRITE;
const u32 DRBD_CONST_REQ_OP_FLUSH = (u32)REQ_OP_FLUSH;
const u32 DRBD_CONST_REQ_OP_DISCARD = (u32)REQ_OP_DISCARD;
const u32 DRBD_CONST_REQ_OP_WRITE_ZEROES = (u32)REQ_OP_WRITE_ZEROES;
const u32 DRBD_CONST_REQ_OP_MASK = (u32)REQ_OP_MASK;
const u32 DRBD_CONST_REQ_SYNC = (u32)REQ_SYNC;
const u32 DRBD_CONST_REQ_FUA = (u32)REQ_FUA;
const u32 DRBD_CONST_REQ_PREFLUSH = (u32)REQ_PREFLUSH;
const u32 DRBD_CONST_REQ_RAHEAD = (u32)REQ_RAHEAD;
const u32 DRBD_CONST_REQ_NOUNMAP = (u32)REQ_NOUNMAP;
const u32 DRBD_CONST_REQ_NOWAIT = (u32)REQ_NOWAIT;
const u32 DRBD_CONST_REQ_POLLED = (u32)REQ_POLLED;
const u32 DRBD_CONST_REQ_META = (u32)REQ_META;
const u8 DRBD_CONST_BLK_STS_OK = (__force u8)BLK_STS_OK;
const u8 DRBD_CONST_BLK_STS_NOTSUPP = (__force u8)BLK_STS_NOTSUPP;
const u8 DRBD_CONST_BLK_STS_IOERR = (__force u8)BLK_STS_IOERR;
const u32 DRBD_CONST_BLK_OPEN_WRITE = (__force u32)BLK_OPEN_WRITE;
const u32 DRBD_CONST_BLK_FEAT_WRITE_CACHE = (__force u32)BLK_FEAT_WRITE_CACHE;
const u32 DRBD_CONST_BLK_FEAT_FUA = (__force u32)BLK_FEAT_FUA;
const u32 DRBD_CONST_BLK_FEAT_STABLE_WRITES = (__force u32)BLK_FEAT_STABLE_WRITES;
const u32 DRBD_CONST_BLK_FEAT_ROTATIONAL = (__force u32)BLK_FEAT_ROTATIONAL;
const u32 DRBD_CONST_BLK_FEAT_IO_STAT = (__force u32)BLK_FEAT_IO_STAT;
const u32 DRBD_CONST_GENHD_FL_NO_PART = GENHD_FL_NO_PART;
const u32 DRBD_CONST_BLKDEV_ZERO_NOUNMAP = BLKDEV_ZERO_NOUNMAP;
const u32 DRBD_CONST_GFP_NOIO = (__force u32)GFP_NOIO;
const int DRBD_CONST_BIOSET_FLAGS = BIOSET_NEED_BVECS | BIOSET_NEED_RESCUER;
const u32 DRBD_CONST_TASK_IDLE = TASK_IDLE;
const u32 DRBD_CONST_TASK_INTERRUPTIBLE = TASK_INTERRUPTIBLE;
const u32 DRBD_CONST_TASK_NORMAL = TASK_NORMAL;
const long DRBD_CONST_MAX_SCHEDULE_TIMEOUT = MAX_SCHEDULE_TIMEOUT;

/* ---- net side ---- */

#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/net.h>
#include <linux/proc_fs.h>
#include <linux/socket.h>
#include <linux/umh.h>
#include <net/sock.h>

#include "helpers_net.h"
#include "helpers_hash.h"
