// SPDX-License-Identifier: GPL-2.0
/*
 * Wrappers of what the kernel offers only as inline function or macro; see helpers.h.
 */
#include <linux/jiffies.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/workqueue.h>

#include "helpers.h"

unsigned long drbd_h_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

void drbd_h_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

unsigned int drbd_h_memalloc_noio_save(void)
{
	return memalloc_noio_save();
}

void drbd_h_memalloc_noio_restore(unsigned int flags)
{
	memalloc_noio_restore(flags);
}

void drbd_h_might_sleep(void)
{
	might_sleep();
}

bool drbd_h_wq_has_sleeper(struct wait_queue_head *queue)
{
	return wq_has_sleeper(queue);
}

/* To the tick: this is asked for in every step of every request. */
u64 drbd_h_get_jiffies_ms(void)
{
	return get_jiffies_64() * MSEC_PER_SEC / HZ;
}

void *drbd_h_page_address(struct page *page)
{
	return page_address(page);
}

unsigned int drbd_h_page_order(struct page *page)
{
	return compound_order(page);
}

bool drbd_h_page_is_shared(struct page *page)
{
	return page_ref_count(page) > 1;
}

void drbd_h_put_page(struct page *page)
{
	put_page(page);
}

/* An owned page that is not in any cache may use its private word; chains are linked through it. */
struct page *drbd_h_page_next(struct page *page)
{
	return (struct page *)page_private(page);
}

void drbd_h_set_page_next(struct page *page, struct page *next)
{
	set_page_private(page, (unsigned long)next);
}

int drbd_h_page_pool_init(mempool_t *pool, int pages)
{
	return mempool_init_page_pool(pool, pages, 0);
}

/* A piece if there is one at hand; never tries hard. */
struct page *drbd_h_alloc_pages_hint(unsigned int order)
{
	return alloc_pages((GFP_NOIO | __GFP_COMP | __GFP_NOWARN | __GFP_NORETRY) & ~__GFP_DIRECT_RECLAIM, order);
}

struct page *drbd_h_mempool_alloc_page(mempool_t *pool)
{
	return mempool_alloc(pool, GFP_NOIO);
}

struct file *drbd_h_bdev_open(const char *path, bool exclusive, void *holder)
{
	return bdev_file_open_by_path(path, BLK_OPEN_READ | BLK_OPEN_WRITE, exclusive ? holder : NULL, NULL);
}

u64 drbd_h_bdev_nr_sectors(struct block_device *bdev)
{
	return bdev_nr_sectors(bdev);
}

const struct queue_limits *drbd_h_bdev_limits(struct block_device *bdev)
{
	return bdev_limits(bdev);
}

unsigned int drbd_h_bdev_max_discard_sectors(struct block_device *bdev)
{
	return bdev_max_discard_sectors(bdev);
}

u32 drbd_h_bdev_dev(struct block_device *bdev)
{
	return bdev->bd_dev;
}

void drbd_h_bio_inc_remaining(struct bio *bio)
{
	bio_inc_remaining(bio);
}

/* Bytes of the first vector that lie before the data. */
unsigned int drbd_h_bio_first_skip(const struct bio *bio)
{
	const struct bio_vec *first = bio->bi_io_vec + bio->bi_iter.bi_idx;

	return bio->bi_iter.bi_size ? mp_bvec_iter_offset(bio->bi_io_vec, bio->bi_iter) - first->bv_offset : 0;
}

struct bio *drbd_h_bio_alloc_clone(struct block_device *bdev, struct bio *source, struct bio_set *set)
{
	return bio_alloc_clone(bdev, source, GFP_NOIO, set);
}

struct bio *drbd_h_bio_alloc(struct block_device *bdev, unsigned short vecs, u32 opf, struct bio_set *set)
{
	return bio_alloc_bioset(bdev, vecs, (__force blk_opf_t)opf, GFP_NOIO, set);
}

void drbd_h_blk_start_plug(struct blk_plug *plug)
{
	blk_start_plug(plug);
}

struct gendisk *drbd_h_alloc_disk(struct queue_limits *limits)
{
	return blk_alloc_disk(limits, NUMA_NO_NODE);
}

int drbd_h_add_disk(struct gendisk *disk)
{
	return add_disk(disk);
}

u64 drbd_h_get_capacity(struct gendisk *disk)
{
	return get_capacity(disk);
}

void drbd_h_disk_uevent_change(struct gendisk *disk)
{
	kobject_uevent(&disk_to_dev(disk)->kobj, KOBJ_CHANGE);
}

void drbd_h_queue_limits_start_update(struct gendisk *disk, struct queue_limits *limits)
{
	*limits = queue_limits_start_update(disk->queue);
}

int drbd_h_queue_limits_commit(struct gendisk *disk, struct queue_limits *limits)
{
	return queue_limits_commit_update_frozen(disk->queue, limits);
}

int drbd_h_link_holder(struct block_device *bdev, struct gendisk *disk)
{
	return bd_link_disk_holder(bdev, disk);
}

void drbd_h_unlink_holder(struct block_device *bdev, struct gendisk *disk)
{
	bd_unlink_disk_holder(bdev, disk);
}

struct workqueue_struct *drbd_h_alloc_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, name);
}
