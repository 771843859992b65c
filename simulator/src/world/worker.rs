//! The worker of a resource: notices, helper programs, orders to the owner.

use super::*;

impl World {
    pub(super) fn work(&mut self, node: usize) {
        let Some(work) = self.engine(node, |engine, _| engine.poll_work()) else { return };
        self.schedule_own(node, 1, Own::Work);
        match work {
            Work::Notice(notice) => {
                self.note(|| match notice {
                    Notice::State { from, to, .. } => format!("node {node} STATE {from} -> {to}"),
                    other => format!("node {node} {other:?}"),
                });
                if let Notice::State { to, .. } = notice {
                    if to.role == Role::Primary && to.disk <= Disk::Failed && to.conn < Conn::Connected {
                        let peer = &self.nodes[1 - node].data;
                        self.oracle.out_of_reach(node, |sector| peer.get(sector));
                    }
                }
                self.history.push((node, notice));
            }
            Work::Log(line) => {
                self.note(|| format!("node {node} LOG {line}"));
                match line {
                    LogLine::Fault { fault } => self.faults.push((node, fault)),
                    // The other node has lost its power, and now this disk fails: that is two failures.
                    LogLine::DiskError { .. } if !self.is_on(1 - node) => self.only_left(1 - node),
                    LogLine::PeerExposedDataDiffers { .. } => self.old_data_refused += 1,
                    LogLine::ResyncDone { source: false, .. } => self.resyncs += 1,
                    LogLine::Decision { comparison, decision, .. } => {
                        self.rules.insert(format!("{:?}", comparison.rule));
                        if let SyncDecision::Refuse(reason) = decision {
                            self.refusals.push(format!("node {node}: {reason}"));
                        }
                    }
                    _ => {}
                }
                assert!(!matches!(line, LogLine::InternalError { .. }), "node {node}: {line}");
            }
            Work::Helper { helper, ticket, .. } => {
                let exit_code = self.helper_exit_code;
                self.helpers.push((node, helper));
                self.note(|| format!("node {node} helper {helper} -> {exit_code}"));
                let delay = self.random.between(100, 20_000);
                self.schedule_own(node, delay, Own::Helper { ticket, exit_code });
            }
            Work::ReleaseBacking { .. } => self.schedule_own(node, 500, Own::Released),
            Work::ReadOnly { read_only, .. } => self.nodes[node].running.as_mut().expect("on").read_only = read_only,
            Work::Resize { volume, sectors } => {
                let tables = engine::bitmap::BitmapTables::new(sectors).ok();
                let _old = self.engine(node, |engine, now| engine.resize(volume, tables, now));
            }
            Work::Algorithms => {
                let wanted = self.engine(node, |engine, _| engine.wanted_algorithms());
                self.tell_algorithms(node, &wanted);
                self.engine(node, |engine, now| engine.algorithms_looked_for(now));
            }
            Work::Capacity { .. } | Work::Limits { .. } | Work::Uevent { .. } | Work::ResyncDependencies => {}
        }
    }
}
