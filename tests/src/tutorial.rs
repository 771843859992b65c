//! What the tutorial has its reader write.

/// `/etc/drbd.conf` of both machines.
pub const CONFIGURATION: &str = "\
global { usage-count no; }
common {
  syncer { rate 10M; }     # 同步的速率
}

resource r0 {
  protocol C;              # 使用协议 C: 两边都写入磁盘才算完成
  disk { on-io-error detach; }
  on drbd1 {               # 每个主机的名称
    device /dev/drbd0;
    disk /dev/sdb1;
    address 192.168.1.11:7788;
    meta-disk internal;
  }
  on drbd2 {
    device /dev/drbd0;
    disk /dev/sdb1;
    address 192.168.1.12:7788;
    meta-disk internal;
  }
}
";
