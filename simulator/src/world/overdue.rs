//! What is given up when it takes too long.
//!
//! # Invariants
//! * A peer that has not answered a request within `timeout` x `ko-count` is given up.
//! * So is a disk that has not done one within `disk-timeout`.

use super::*;

/// The clock looks once a second.
const LOOKED_AT_US: u64 = 1300 * MS;

/// How long a node waits for the peer, and since when it has waited so long.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Limit {
    us: u64,
    since_us: u64,
}

impl World {
    /// The peer is sent a request of the application.
    pub(super) fn note_request_sent(&mut self, node: usize, number: usize) {
        let sent = self.link_of(node).map(|link| (link, self.now_us));
        self.operations[number].sent = sent;
    }

    /// A tick of the node.
    pub(super) fn check_overdue(&mut self, node: usize) {
        let engine = self.engine_of(node);
        let connected = engine.connection_status().state >= Conn::WFReportParams;
        let net = engine.net_conf().filter(|_| connected);
        let us = net.map_or(0, |net| u64::from(net.timeout) * u64::from(net.ko_count) * 100 * MS);
        if self.limits[node].us != us {
            self.limits[node] = Limit { us, since_us: self.now_us };
        }
        self.check_peer_overdue(node);
        self.check_disk_overdue(node);
    }

    fn check_peer_overdue(&self, node: usize) {
        let Limit { us, since_us } = self.limits[node];
        let Some(link) = self.link_of(node).filter(|_| us > 0 && self.hostile.is_none()) else { return };
        let running = self.nodes[node].running.as_ref().expect("on");
        for upper in running.uppers.iter().flatten() {
            let operation = &self.operations[upper.operation];
            let Some((_, sent_us)) = operation.sent.filter(|(over, _)| *over == link) else { continue };
            // Under protocol A nothing is awaited but the acknowledgement of the barrier.
            let view = running.engine.request(upper.request);
            let waits =
                view.is_some_and(|view| operation.stamp == 0 || view.protocol != engine::netlink::WireProtocol::A);
            let overdue = self.now_us > sent_us.max(since_us) + us + LOOKED_AT_US;
            assert!(
                !(waits && overdue),
                "node {node} has waited since {sent_us} us for an answer to {operation:?}, and goes on; {}",
                self.describe()
            );
        }
    }

    fn check_disk_overdue(&self, node: usize) {
        let running = self.nodes[node].running.as_ref().expect("on");
        for transfer in running.transfers.values() {
            let status = running.engine.volume_status(transfer.volume);
            let conf = running.engine.disk_conf(transfer.volume);
            let limit_us = conf.map_or(0, |conf| u64::from(conf.disk_timeout) * 100 * MS);
            let in_use = status.is_some_and(|status| status.state.disk > Disk::Failed);
            let own = matches!(transfer.io, LocalIo::Request { .. });
            let overdue = self.now_us > transfer.start_us + limit_us + LOOKED_AT_US;
            assert!(
                !(own && in_use && limit_us > 0 && overdue),
                "node {node} has waited since {} us for the disk to do {transfer}, and goes on",
                transfer.start_us
            );
        }
    }
}
