/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Wrappers of what the kernel offers only as inline function or macro. Each does exactly what its name, without the
 * prefix, does in the kernel; the Rust side says what it is used for. bindgen reads this file.
 * What sockets, netlink and the like need is in helpers_net.h.
 */
#ifndef DRBD_HELPERS_H
#define DRBD_HELPERS_H

#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/mempool.h>
#include <linux/mm.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

/* ---- disks, memory, time ---- */

/* locks, memory, time */
unsigned long drbd_h_spin_lock_irqsave(spinlock_t *lock);
void drbd_h_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags);
unsigned int drbd_h_memalloc_noio_save(void);
void drbd_h_memalloc_noio_restore(unsigned int flags);
void drbd_h_might_sleep(void);
bool drbd_h_wq_has_sleeper(struct wait_queue_head *queue);
u64 drbd_h_get_jiffies_ms(void);

/* pages */
void *drbd_h_page_address(struct page *page);
unsigned int drbd_h_page_order(struct page *page);
bool drbd_h_page_is_shared(struct page *page);
void drbd_h_put_page(struct page *page);
struct page *drbd_h_page_next(struct page *page);
void drbd_h_set_page_next(struct page *page, struct page *next);
int drbd_h_page_pool_init(mempool_t *pool, int pages);
struct page *drbd_h_alloc_pages_hint(unsigned int order);
struct page *drbd_h_mempool_alloc_page(mempool_t *pool);

/* lower devices */
struct file *drbd_h_bdev_open(const char *path, bool exclusive, void *holder);
u64 drbd_h_bdev_nr_sectors(struct block_device *bdev);
const struct queue_limits *drbd_h_bdev_limits(struct block_device *bdev);
unsigned int drbd_h_bdev_max_discard_sectors(struct block_device *bdev);
u32 drbd_h_bdev_dev(struct block_device *bdev);

/* bios */
void drbd_h_bio_inc_remaining(struct bio *bio);
unsigned int drbd_h_bio_first_skip(const struct bio *bio);
struct bio *drbd_h_bio_alloc_clone(struct block_device *bdev, struct bio *source, struct bio_set *set);
struct bio *drbd_h_bio_alloc(struct block_device *bdev, unsigned short vecs, u32 opf, struct bio_set *set);
void drbd_h_blk_start_plug(struct blk_plug *plug);

/* own disks */
struct gendisk *drbd_h_alloc_disk(struct queue_limits *limits);
int drbd_h_add_disk(struct gendisk *disk);
u64 drbd_h_get_capacity(struct gendisk *disk);
void drbd_h_disk_uevent_change(struct gendisk *disk);
void drbd_h_queue_limits_start_update(struct gendisk *disk, struct queue_limits *limits);
int drbd_h_queue_limits_commit(struct gendisk *disk, struct queue_limits *limits);
int drbd_h_link_holder(struct block_device *bdev, struct gendisk *disk);
void drbd_h_unlink_holder(struct block_device *bdev, struct gendisk *disk);

/* work */
struct workqueue_struct *drbd_h_alloc_workqueue(const char *name);

#endif
