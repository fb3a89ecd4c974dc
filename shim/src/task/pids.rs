//! Pids: lists the processes of a container, and which of them are execs.
//!
//! A container without processes still lists its init, whose end may not have
//! been reported yet. When containerd from 1.7 on starts, it deletes a task
//! without processes as leaked (`loadShimTask`, core/runtime/v2/shim_load.go),
//! and the init's exit would be lost.

use containerd_shim_protos::api::{PidsRequest, PidsResponse, ProcessInfo};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::oci::ProcessDetails;

use super::shim::Shim;
use crate::error::{Context, Result};

/// The type, as containerd's clients have it from runc's shim.
const DETAILS: &str = "containerd.runc.v1.ProcessDetails";

pub(super) fn pids(shim: &Shim, request: &PidsRequest) -> Result<PidsResponse> {
    let mut table = shim.table();
    let container = table.container(&request.id)?;
    let boot = container.boot.sandbox.pid();
    // boot is in the root container's cgroup, but counts as its process only if it
    // stands in for the pause process.
    let is_ours = |pid: &sandbox_core::types::HostPid| *pid != boot || container.is_pause();
    let pids = container.members()?.into_iter().filter(is_ours);
    let mut pids: Vec<u32> = pids.filter_map(|pid| u32::try_from(pid.0).ok()).collect();
    if pids.is_empty() {
        pids.push(container.init.pid);
    }
    let mut processes = Vec::new();
    for pid in pids {
        let exec =
            container.execs.iter().find(|(_, exec)| exec.pid == pid && exec.state.is_alive());
        let info = exec.map(|(id, _)| details(id)).transpose()?.map(Box::new);
        processes.push(ProcessInfo { pid, info: MessageField(info), ..Default::default() });
    }
    Ok(PidsResponse { processes, ..Default::default() })
}

fn details(exec: &str) -> Result<Any> {
    let details = ProcessDetails { exec_id: exec.to_string(), ..Default::default() };
    let value = details.write_to_bytes().context(|| "encode ProcessDetails")?;
    Ok(Any { type_url: DETAILS.to_string(), value, ..Default::default() })
}
