// SPDX-License-Identifier: GPL-2.0
//! The administrator's resize. spec: metadata 7.4

use super::{Engine, Op};
use crate::netlink::ResizeParms;
use crate::resource::VolumeId;
use crate::storage::Storage;

impl<S: Storage> Engine<S> {
    pub(super) fn start_resize(&mut self, id: VolumeId, parms: &ResizeParms) {
        if let Err(code) = self.check_resize(id, parms) {
            self.answer(code.number());
            return;
        }
        self.with_volume(id, |volume| volume.holds += 1);
        self.admin.op = Some(Op::Resize { volume: id, parms: *parms, begun: false });
    }

    pub(super) fn run_resize(&mut self, id: VolumeId, parms: ResizeParms) {
        let quiet = self.susp.any() || self.volume(id).is_none_or(|volume| volume.upper_pending == 0);
        if !quiet || self.volume(id).is_some_and(|volume| volume.resize.is_some()) {
            return;
        }
        self.admin.op = Some(Op::Resize { volume: id, parms, begun: true });
        if let Err(code) = self.check_resize(id, &parms).and_then(|()| self.carry_out_resize(id, &parms)) {
            self.end_held(id, code.number());
        }
    }

    /// The administrator's change of size is done, or has failed.
    pub(in crate::resource) fn admin_resized(&mut self, id: VolumeId, code: i32) {
        if matches!(self.admin.op, Some(Op::Resize { volume, begun: true, .. }) if volume == id) {
            self.answer(code);
        }
    }
}
