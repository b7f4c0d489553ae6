//! Whether both models fit a device, computed before gigabytes are read.
//!
//! What is counted: the weights of both models, and the larger of their workspaces, since one forward pass runs at a time
//! on a device. A device that takes memory as batches come, as a CPU does, has no workspace. What a device has is what was free when it was opened. Where files are still on their way and no index
//! tells their size, nothing is refused, and the device tells when it is full.

use crate::Role;
use nexus_models::MemoryNeed;

/// What the models need that are on the devices, or on the way there.
#[derive(Debug, Default)]
pub(crate) struct Budget(Vec<(Role, MemoryNeed)>);

impl Budget {
    /// Counts a model in; what was counted of the same role before goes.
    pub(crate) fn count(&mut self, role: Role, need: MemoryNeed) {
        self.forget(role);
        self.0.push((role, need));
    }

    /// Counts a model out.
    pub(crate) fn forget(&mut self, role: Role) {
        self.0.retain(|(counted, _)| *counted != role);
    }

    /// Whether a device with `bytes` of memory has room for all that is counted, the workspaces for batches of `tokens`
    /// tokens; if not, what it comes to, and what to do.
    pub(crate) fn check(&self, device: &str, bytes: u64, tokens: usize) -> Result<(), String> {
        let weights = |need: &MemoryNeed| need.weights_bytes.unwrap_or(0);
        let workspace = self.0.iter().map(|(_, need)| need.workspace_bytes).max().unwrap_or(0);
        let total = self.0.iter().map(|(_, need)| weights(need)).fold(workspace, u64::saturating_add);
        if total <= bytes {
            return Ok(());
        }
        let mut parts: Vec<String> =
            self.0.iter().map(|(role, need)| format!("weights of the {}: {}", role.name(), weights(need))).collect();
        let mut batches = "";
        if workspace > 0 {
            parts.push(format!("workspace for batches of {tokens} tokens: {workspace}"));
            batches = "smaller batches (NEXUS_BATCH_TOKENS_MAX), ";
        }
        Err(format!(
            "{device} has {bytes} bytes of memory free, and the models need about {total} ({}): take {batches}a device with \
             more memory, or smaller models",
            parts.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_all_weights_and_the_larger_workspace() {
        let mut budget = Budget::default();
        let need = |weights_bytes, workspace_bytes| MemoryNeed { weights_bytes: Some(weights_bytes), workspace_bytes };
        budget.count(Role::Retriever, need(1000, 30));
        budget.count(Role::Reranker, need(200, 50));
        assert_eq!(budget.check("gpu 0", 1250, 64), Ok(()));
        let refused = budget.check("gpu 0", 1249, 64).unwrap_err();
        for part in ["gpu 0 has 1249 bytes", "about 1250", "retriever: 1000", "reranker: 200", "64 tokens: 50", "BATCH"]
        {
            assert!(refused.contains(part), "{part} in {refused}");
        }
        // A reload that repairs what failed counts once.
        budget.count(Role::Retriever, need(10, 30));
        assert_eq!(budget.check("gpu 0", 260, 64), Ok(()));
        budget.forget(Role::Reranker);
        assert_eq!(budget.check("gpu 0", 40, 64), Ok(()));
        budget.count(Role::Retriever, need(10, 0));
        let refused = budget.check("cpu", 9, 0).unwrap_err();
        assert!(!refused.contains("batches") && refused.contains("take a device"), "{refused}");
    }

    #[test]
    fn what_is_not_known_is_not_refused() {
        let mut budget = Budget::default();
        budget.count(Role::Retriever, MemoryNeed { weights_bytes: None, workspace_bytes: 5 });
        assert_eq!(budget.check("gpu 0", 5, 64), Ok(()));
    }
}
