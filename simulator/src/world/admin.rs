//! The administrator.

use super::*;

impl World {
    /// Asks for something; the answer is fetched with [`World::poll_admin`].
    pub fn ask(&mut self, node: usize, request: AdminRequest<'_>) {
        self.note(|| format!("node {node} asks {request:?}").chars().take(120).collect());
        self.gives_up[node] = matches!(request, AdminRequest::Invalidate { .. });
        self.engine(node, |engine, now| engine.admin(request, now));
    }

    /// The answer to what was asked for, once.
    pub fn poll_admin(&mut self, node: usize) -> Option<i32> {
        let mut volumes = self.volumes();
        if let Some(code) = volumes.find_map(|volume| self.at(volume, |world| world.attach_again(node))) {
            return Some(code);
        }
        let code = self.engine(node, |engine, _| engine.admin_result())?.code;
        self.note(|| format!("node {node} answer {code}"));
        self.gives_up[node] = false;
        let attached = self.volumes().find(|volume| self.attaching(node, *volume) == Attaching::Begun);
        self.at(attached.unwrap_or(VOLUME), |world| world.attach_answered(node, code))
    }

    /// Asks for something and waits for the answer.
    #[track_caller]
    pub fn admin(&mut self, node: usize, request: AdminRequest<'_>) -> i32 {
        self.note(|| format!("node {node} admin {request:?}").chars().take(200).collect());
        self.gives_up[node] = matches!(request, AdminRequest::Invalidate { .. });
        self.engine(node, |engine, now| engine.admin(request, now));
        self.admin_answer(node)
    }

    /// Waits for the answer of a request that was started.
    #[track_caller]
    pub fn admin_answer(&mut self, node: usize) -> i32 {
        let end_us = self.now_us + 120_000 * MS;
        loop {
            if let Some(code) = self.poll_admin(node) {
                return code;
            }
            let goes_on = self.now_us <= end_us && self.step();
            assert!(goes_on, "no answer to the administrator; {}", self.describe());
        }
    }

    /// As `drbdadm attach`.
    #[track_caller]
    pub fn attach(&mut self, node: usize) -> i32 {
        match self.start_attach(node) {
            Ok(()) => self.admin_answer(node),
            Err(code) => code,
        }
    }

    /// Tells a node's engine which of these algorithms can be computed.
    pub fn tell_algorithms(&mut self, node: usize, names: &[AlgorithmName]) {
        for name in names.iter().filter(|name| inspect::is_known(name)) {
            let known = self.engine(node, |engine, _| engine.know_algorithm(name, inspect::DIGEST_BYTES));
            assert!(known, "room for an algorithm");
        }
    }

    /// As `drbdadm connect`.
    #[track_caller]
    pub fn connect(&mut self, node: usize) -> i32 {
        let conf = crate::draw::net_of(node, &self.config.net);
        self.tell_algorithms(
            node,
            &[conf.verify_alg, conf.csums_alg, conf.integrity_alg, hmac_of(&conf.cram_hmac_alg)],
        );
        self.admin(node, AdminRequest::Connect { conf: &conf })
    }
}
