//! How a client wants a container to be saved: runc's `CheckpointOptions`, field by field.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;

use crate::error::{Error, Result};

/// The type, as containerd's clients send it.
const NAME: &str = "containerd.runc.v1.CheckpointOptions";

/// The options.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CheckpointOptions {
    /// Whether the container ends once it is saved.
    pub(super) exit: bool,
    /// Whether established TCP connections are saved. They are closed otherwise.
    pub(super) open_tcp: bool,
    /// Whether unix sockets may be connected to processes outside.
    pub(super) external_unix_sockets: bool,
    /// The folder of the log; that of the images by default.
    pub(super) work: Option<PathBuf>,
}

impl CheckpointOptions {
    /// Reads the options of a request that saves to `folder`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` names the field that is not served.
    pub(super) fn read(any: Option<&Any>, folder: &str) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        if name != NAME {
            return Err(Error::invalid(format!("options are a {name}, expected a {NAME}")));
        }
        let runc = oci::CheckpointOptions::parse_from_bytes(&any.value)
            .map_err(|e| Error::invalid(format!("options: decode {NAME}: {e}")))?;
        if let Some((number, _)) = runc.special_fields.unknown_fields().iter().next() {
            return Err(Error::invalid(format!("options: {NAME} has no field {number}")));
        }
        let refused = [
            (
                "empty_namespaces",
                !runc.empty_namespaces.is_empty(),
                "each namespace is either the container's, and saved, or the pod's, and not",
            ),
            (
                "cgroups_mode",
                !matches!(runc.cgroups_mode.as_str(), "" | "ignore"),
                "the cgroup of a restored container is made by its own spec",
            ),
            (
                "image_path",
                !runc.image_path.is_empty() && Path::new(&runc.image_path) != Path::new(folder),
                "the images go to the request's path, which is another",
            ),
            (
                "work_path",
                !runc.work_path.is_empty() && !Path::new(&runc.work_path).is_absolute(),
                "expected an absolute path",
            ),
        ];
        if let Some((field, _, why)) = refused.iter().find(|(_, set, _)| *set) {
            return Err(Error::invalid(format!("options: {field}: {why}; leave it out")));
        }
        // `terminal` and `file_locks` are always served.
        Ok(Self {
            exit: runc.exit,
            open_tcp: runc.open_tcp,
            external_unix_sockets: runc.external_unix_sockets,
            work: Some(PathBuf::from(runc.work_path)).filter(|path| !path.as_os_str().is_empty()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &dyn Fn(&mut oci::CheckpointOptions)) -> Result<CheckpointOptions> {
        let mut runc = oci::CheckpointOptions::new();
        set(&mut runc);
        let any = Any {
            type_url: format!("types.containerd.io/{NAME}"),
            value: runc.write_to_bytes().unwrap(),
            ..Default::default()
        };
        CheckpointOptions::read(Some(&any), "/images")
    }

    #[test]
    fn runc_s_options_are_served_or_refused_by_name() {
        assert_eq!(CheckpointOptions::read(None, "/images").unwrap(), Default::default());
        let all = read(&|runc| {
            (runc.exit, runc.open_tcp, runc.external_unix_sockets) = (true, true, true);
            (runc.terminal, runc.file_locks) = (true, true);
            runc.image_path = "/images".into();
            runc.work_path = "/work".into();
        });
        let work = Some(PathBuf::from("/work"));
        let expected =
            CheckpointOptions { exit: true, open_tcp: true, external_unix_sockets: true, work };
        assert_eq!(all.unwrap(), expected);
        type Set = fn(&mut oci::CheckpointOptions);
        let refused: [(Set, &str); 5] = [
            (|runc| runc.empty_namespaces.push("network".into()), "empty_namespaces"),
            (|runc| runc.cgroups_mode = "soft".into(), "cgroups_mode"),
            (|runc| runc.image_path = "/elsewhere".into(), "image_path"),
            (|runc| runc.work_path = "work".into(), "work_path"),
            (|runc| runc.special_fields.mut_unknown_fields().add_varint(77, 1), "field 77"),
        ];
        for (set, field) in refused {
            let error = read(&set).unwrap_err().to_string();
            assert!(error.contains(field), "{field}: {error}");
        }
        let other = Any { type_url: "x/some.Other".into(), ..Default::default() };
        let error = CheckpointOptions::read(Some(&other), "/images").unwrap_err().to_string();
        assert!(error.contains("some.Other"), "{error}");
    }
}
