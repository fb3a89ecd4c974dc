//! The options that a node's administrator, and with limits a pod, may set.
//! containerd passes `runtimeoptions.v1.Options` (`type_url`, `config_path`,
//! and TOML in `config_body` if the path is empty) with `start` and with each
//! Create. Without either, `/etc/palisade/config.toml` is read if it exists.
//! Pod annotations under `dev.palisade.` have the same names. They may only
//! tighten an option, unless `allow_annotations` lists the key.

use std::collections::HashMap;
use std::fmt::Debug;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;

use containerd_shim::api;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use sandbox_core::sandbox::Config;
use sandbox_core::spec::baseline::{Allowed, Baseline, Level};
use sandbox_core::spec::plan::Views;
use sandbox_core::types::{IdPool, Userns};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Context, Error, Result};
use crate::rootless;
pub(crate) use crate::user_log_option::{UserLog, UserLogFormat};

/// The configuration file that is read if containerd names none.
const DEFAULT_FILE: &str = "/etc/palisade/config.toml";

/// Returns the state directory of all sandboxes. It is not an option, since `delete`
/// gets none.
pub(crate) fn state_root() -> PathBuf {
    rootless::state_root().unwrap_or_else(|| PathBuf::from("/run/palisade"))
}

/// Prefix of Palisade's annotations.
pub(crate) const ANNOTATIONS: &str = "dev.palisade.";

/// The options. Their defaults are those of the documentation.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Options {
    /// The rule by which a sandbox gets a user namespace or not.
    pub(crate) userns: UsernsOption,
    /// First host ID of the range from which sandboxes get slices.
    pub(crate) id_range_start: u32,
    /// Number of host IDs in the range.
    pub(crate) id_range_size: u32,
    /// Number of IDs, from 0 on, that the containers of a sandbox have.
    pub(crate) ids_per_sandbox: u32,
    /// Whether the shim and boot log at debug level.
    pub(crate) debug: bool,
    /// The program that makes cgroups. `SystemdCgroup`, as in runc's options,
    /// means systemd.
    pub(crate) cgroup_driver: CgroupDriver,
    #[serde(rename = "SystemdCgroup")]
    systemd_cgroup: bool,
    /// Whether a CPU quota lowers a container's capacity.
    pub(crate) cpu_from_quota: bool,
    /// The fewest CPUs that a quota leaves.
    cpu_minimum: Option<u32>,
    /// Cgroup of the shim itself, as in runc's options.
    pub(crate) shim_cgroup: String,
    /// What happens to a container whose spec grants what has no effect.
    pub(crate) on_powerless: OnPowerless,
    /// How much of the kernel containers reach.
    baseline: Level,
    /// The parts of the kernel that they reach nevertheless.
    baseline_allow: Parts,
    /// Where calls are told that were refused to containers.
    pub(crate) user_log: UserLog,
    /// The form of its lines.
    pub(crate) user_log_format: UserLogFormat,
    /// Whether containers see their own CPUs and memory.
    views: ViewsOption,
    /// Whether the shim keeps the spans of its requests.
    pub(crate) spans: bool,
    /// Whether containers may be saved.
    pub(crate) checkpoint: bool,
    /// The executable of criu; empty for the one in PATH.
    pub(crate) criu: PathBuf,
    /// Keys that annotations may also loosen.
    allow_annotations: Vec<String>,
    #[serde(skip)]
    given: Given,
}

/// Where the options that are not at their defaults come from.
#[derive(Clone, Debug, Default, PartialEq)]
struct Given {
    /// A file, or `config_body`.
    by: String,
    /// The keys that were set there.
    keys: Vec<String>,
    /// Whether runc's options name the program that makes cgroups.
    runc: bool,
}

/// [`Userns`], ordered from loose to tight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UsernsOption {
    Never,
    Spec,
    Auto,
}

impl From<UsernsOption> for Userns {
    fn from(option: UsernsOption) -> Self {
        match option {
            UsernsOption::Auto => Self::Auto,
            UsernsOption::Spec => Self::Spec,
            UsernsOption::Never => Self::Never,
        }
    }
}

/// The answer to a spec that grants or asks for what has no effect, ordered from
/// loose to tight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum OnPowerless {
    /// A warning and an event.
    Warn,
    /// Create fails.
    Refuse,
}

/// What containers are told about CPUs and memory, ordered from loose to tight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
enum ViewsOption {
    /// The host's, as the kernel tells it.
    Off,
    /// Their own.
    On,
}

impl TryFrom<String> for ViewsOption {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            _ => Err(format!("views = {text:?}: expected \"on\" or \"off\"")),
        }
    }
}

/// Parts of the kernel by their names: a list, or in one string with commas or spaces, as
/// annotations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "PartNames")]
struct Parts(Allowed);

#[derive(Deserialize)]
#[serde(untagged)]
enum PartNames {
    List(Vec<String>),
    Text(String),
}

impl TryFrom<PartNames> for Parts {
    type Error = String;

    fn try_from(names: PartNames) -> std::result::Result<Self, String> {
        let names = match names {
            PartNames::List(names) => names,
            PartNames::Text(text) => {
                text.split([',', ' ']).map(|name| name.trim().to_owned()).collect()
            }
        };
        let mut parts = Allowed::NONE;
        for name in names.iter().filter(|name| !name.is_empty()) {
            let known = || Allowed::NAMES.map(|(name, _)| name).join(", ");
            let part = Allowed::named(name);
            parts = parts.with(part.ok_or_else(|| format!("{name:?} is none of {}", known()))?);
        }
        Ok(Self(parts))
    }
}

/// The program that makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// systemd if the spec's path has the form `slice:prefix:name`.
    Auto,
    Cgroupfs,
    Systemd,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            userns: UsernsOption::Auto,
            id_range_start: 0x4000_0000,
            id_range_size: 0x4000_0000,
            ids_per_sandbox: IdPool::SLICE,
            debug: false,
            cgroup_driver: CgroupDriver::Auto,
            systemd_cgroup: false,
            cpu_from_quota: true,
            cpu_minimum: None,
            shim_cgroup: String::new(),
            on_powerless: OnPowerless::Warn,
            baseline: Level::Default,
            baseline_allow: Parts(Allowed::NONE),
            user_log: UserLog::Off,
            user_log_format: UserLogFormat::Text,
            views: ViewsOption::On,
            spans: false,
            checkpoint: false,
            criu: PathBuf::new(),
            allow_annotations: Vec::new(),
            given: Given::default(),
        }
    }
}

impl Options {
    /// Reads the options that containerd passed, or the node's file, or takes
    /// the defaults.
    pub(crate) fn read(any: Option<&Any>) -> Result<Self> {
        let any = any.filter(|any| !any.type_url.is_empty());
        if let Some(runc) = any.filter(|any| is_runc_options(any)) {
            let mut options = Self::read(None)?;
            if check_runc_options(runc)?.systemd_cgroup {
                options.cgroup_driver = CgroupDriver::Systemd;
                let key = "cgroup_driver".to_owned();
                options.given.keys.retain(|known| *known != key);
                options.given.runc = true;
            }
            return Ok(options);
        }
        let (path, body) = any.map_or_else(|| Ok(Default::default()), runtime_options)?;
        let (source, text) = if !path.is_empty() {
            let text = fs::read_to_string(&path)
                .context(|| format!("options: read config_path {path}"))?;
            (path, text)
        } else if !body.is_empty() {
            ("config_body".to_string(), body)
        } else {
            match fs::read_to_string(DEFAULT_FILE) {
                Ok(text) => (DEFAULT_FILE.to_string(), text),
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Self::default()),
                Err(e) => {
                    return Err(Error::internal(format!("options: read {DEFAULT_FILE}: {e}")));
                }
            }
        };
        let mut options =
            Self::parse(&text).map_err(|e| Error::invalid(format!("options: {source}: {e}")))?;
        let keys = toml::from_str::<toml::Table>(&text).map(|table| table.into_iter());
        let keys = keys.into_iter().flatten().map(|(key, _)| key).collect();
        options.given = Given { by: source, keys, runc: false };
        Ok(options)
    }

    /// Returns each option's value, and where it comes from: default, file, or annotation.
    pub(crate) fn explained(&self, annotations: &HashMap<String, String>) -> Value {
        let lower = |value: &dyn Debug| Value::from(format!("{value:?}").to_lowercase());
        let parts: Vec<_> = self.baseline_allow.0.names().collect();
        let values: [(&str, Value); 17] = [
            ("userns", lower(&self.userns)),
            ("id_range_start", self.id_range_start.into()),
            ("id_range_size", self.id_range_size.into()),
            ("ids_per_sandbox", self.ids_per_sandbox.into()),
            ("debug", self.debug.into()),
            ("cgroup_driver", lower(&self.cgroup_driver)),
            ("cpu_from_quota", self.cpu_from_quota.into()),
            ("cpu_minimum", self.cpu_minimum.into()),
            ("shim_cgroup", self.shim_cgroup.as_str().into()),
            ("on_powerless", lower(&self.on_powerless)),
            ("baseline", lower(&self.baseline)),
            ("baseline_allow", json!(parts)),
            ("user_log", self.user_log.name().into()),
            ("views", lower(&self.views)),
            ("checkpoint", self.checkpoint.into()),
            ("criu", self.criu.to_string_lossy().into()),
            ("allow_annotations", json!(self.allow_annotations)),
        ];
        let one = |(key, value): (&str, Value)| {
            let from = self.source_of(key, annotations);
            (key.to_owned(), json!({ "value": value, "from": from }))
        };
        Value::Object(values.into_iter().map(one).collect())
    }

    fn source_of(&self, key: &str, annotations: &HashMap<String, String>) -> String {
        let annotation = format!("{ANNOTATIONS}{key}");
        let set = |key: &str| self.given.keys.iter().any(|known| known == key);
        match key {
            _ if annotations.contains_key(&annotation) => format!("annotation {annotation}"),
            "cgroup_driver" if self.given.runc => "runc's options (SystemdCgroup)".to_owned(),
            "cgroup_driver" if set("SystemdCgroup") => self.given.by.clone(),
            _ if set(key) => self.given.by.clone(),
            _ => "default".to_owned(),
        }
    }

    /// Reads the text of an options file.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let mut options: Self =
            toml::from_str(text).map_err(|e| Error::invalid(e.message().to_string()))?;
        if options.systemd_cgroup {
            options.cgroup_driver = CgroupDriver::Systemd;
        }
        let ids = options.ids_per_sandbox;
        if ids == 0 || !ids.is_multiple_of(IdPool::SLICE) {
            return Err(Error::invalid(format!(
                "ids_per_sandbox = {ids}: expected a multiple of {}",
                IdPool::SLICE
            )));
        }
        if options.id_range_start.checked_add(options.id_range_size).is_none() {
            return Err(Error::invalid(format!(
                "id_range_size = {}: the range ends beyond the last ID, {}",
                options.id_range_size,
                u32::MAX
            )));
        }
        if !options.criu.as_os_str().is_empty() && !options.criu.is_absolute() {
            return Err(Error::invalid(format!(
                "criu = {:?}: expected an absolute path, or nothing for the one in PATH",
                options.criu
            )));
        }
        for key in &options.allow_annotations {
            let part = key.strip_prefix(PART).and_then(Allowed::named);
            if !ANNOTATABLE.contains(&key.as_str()) && part.is_none() {
                return Err(Error::invalid(format!(
                    "allow_annotations: {key:?} is none of {}, nor {PART} with one of its values",
                    ANNOTATABLE.join(", ")
                )));
            }
        }
        Ok(options)
    }

    /// Applies a pod's annotations.
    pub(crate) fn annotated(mut self, annotations: &HashMap<String, String>) -> Result<Self> {
        let mut ours: Vec<_> = annotations
            .iter()
            .filter_map(|(k, v)| Some((k.strip_prefix(ANNOTATIONS)?, v)))
            .collect();
        ours.sort_unstable();
        for (key, value) in ours {
            let allowed = self.allow_annotations.iter().any(|allowed| allowed == key);
            if !self.annotate(key, value)? && !allowed {
                return Err(Error::invalid(format!(
                    "annotation {ANNOTATIONS}{key}={value:?} would loosen this node's options; \
                     they permit that by allow_annotations = [{key:?}]"
                )));
            }
        }
        Ok(self)
    }

    /// Sets one key. Returns whether it was tightened or stays the same.
    fn annotate(&mut self, key: &str, value: &str) -> Result<bool> {
        let tightens;
        match key {
            "userns" => {
                let new = parsed(key, value)?;
                tightens = new >= self.userns;
                self.userns = new;
            }
            "debug" => {
                let new = parsed(key, value)?;
                tightens = new == self.debug;
                self.debug = new;
            }
            "cpu_from_quota" => {
                let new = parsed(key, value)?;
                tightens = new || !self.cpu_from_quota;
                self.cpu_from_quota = new;
            }
            "cpu_minimum" => {
                let new = parsed(key, value)?;
                tightens = new <= self.cpu_minimum();
                self.cpu_minimum = Some(new);
            }
            "on_powerless" => {
                let new = parsed(key, value)?;
                tightens = new >= self.on_powerless;
                self.on_powerless = new;
            }
            "baseline" => {
                let new = parsed(key, value)?;
                tightens = new >= self.baseline;
                self.baseline = new;
            }
            "baseline_allow" => {
                let new: Parts = parsed(key, value)?;
                let more = new.0.without(self.baseline_allow.0);
                let keys = self.allow_annotations.iter();
                let parts = keys.filter_map(|key| key.strip_prefix(PART).and_then(Allowed::named));
                tightens = parts.fold(Allowed::NONE, Allowed::with).contains(more);
                self.baseline_allow = new;
            }
            "user_log" => {
                let new: UserLog = parsed(key, value)?;
                if matches!(new, UserLog::File(_)) && new != self.user_log {
                    return Err(Error::invalid(format!(
                        "annotation {ANNOTATIONS}{key}={value:?}: a pod chooses \"pod\" or \"off\"; \
                         a file is named by the node's options"
                    )));
                }
                tightens = new == self.user_log || self.user_log == UserLog::Off;
                self.user_log = new;
            }
            "views" => {
                let new = parsed(key, value)?;
                tightens = new >= self.views;
                self.views = new;
            }
            "checkpoint" => {
                let new = parsed(key, value)?;
                if new && !self.checkpoint {
                    return Err(Error::invalid(format!(
                        "annotation {ANNOTATIONS}{key}={value:?}: a pod may only forbid that it is \
                         saved; that pods may be is said by the node's options"
                    )));
                }
                tightens = true;
                self.checkpoint = new;
            }
            _ => {
                return Err(Error::invalid(format!(
                    "annotation {ANNOTATIONS}{key} is unknown; known are checkpoint, {}",
                    ANNOTATABLE.join(", ")
                )));
            }
        }
        Ok(tightens)
    }

    /// Returns the host IDs from which sandboxes get theirs.
    pub(crate) fn id_pool(&self) -> IdPool {
        IdPool {
            start: self.id_range_start,
            size: self.id_range_size,
            per_sandbox: self.ids_per_sandbox,
            rootless: rootless::of_this_process(),
        }
    }

    /// Returns the baseline of containers that are not privileged.
    pub(crate) fn baseline(&self) -> Baseline {
        Baseline { level: self.baseline, allowed: self.baseline_allow.0 }
    }

    /// Returns the fewest CPUs that a quota leaves to a sandbox.
    pub(crate) fn cpu_minimum(&self) -> u32 {
        self.cpu_minimum.unwrap_or(2)
    }

    /// Returns how views count, if containers have them. They say one CPU where the quota says
    /// so, unless the minimum was set.
    pub(crate) fn views(&self) -> Option<Views> {
        let counts = Views {
            cpu_from_quota: self.cpu_from_quota,
            cpu_minimum: self.cpu_minimum.unwrap_or(1),
        };
        (self.views == ViewsOption::On).then_some(counts)
    }

    /// Returns the part of the options that `sandbox-core` needs.
    pub(crate) fn config(&self, palisade: PathBuf) -> Config {
        Config {
            userns: self.userns.into(),
            id_pool: self.id_pool(),
            state_root: state_root(),
            palisade,
            debug: self.debug,
            user_log: self.user_log != UserLog::Off,
        }
    }
}

/// The keys that an annotation may name, and loosen if the node allows it. `checkpoint` is one that
/// it may only tighten.
const ANNOTATABLE: [&str; 9] = [
    "userns",
    "debug",
    "cpu_from_quota",
    "cpu_minimum",
    "on_powerless",
    "baseline",
    "baseline_allow",
    "user_log",
    "views",
];

/// The beginning of a key of `allow_annotations` that allows one part alone.
const PART: &str = "baseline_allow.";

/// Parses an annotation's value, which is a TOML value. A string may omit its
/// quotes.
fn parsed<T: for<'a> Deserialize<'a>>(key: &str, value: &str) -> Result<T> {
    #[derive(Deserialize)]
    struct Wrapped<T> {
        value: T,
    }
    let read = |text: String| toml::from_str::<Wrapped<T>>(&text).map(|wrapped| wrapped.value);
    read(format!("value = {value}")).or_else(|_| read(format!("value = {value:?}"))).map_err(|e| {
        Error::invalid(format!("annotation {ANNOTATIONS}{key}={value:?}: {}", e.message()))
    })
}

/// Whether this is a `runtimeoptions.v1.Options`, which [`Options::read`]
/// accepts.
pub(crate) fn is_runtime_options(any: &Any) -> bool {
    let name = any.type_url.rsplit('/').next();
    matches!(name, Some("runtimeoptions.v1.Options" | "cri.runtimeoptions.v1.Options"))
}

/// Whether these are runc's own options, which containerd sends where its
/// configuration calls this shim by runc's name.
fn is_runc_options(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some("containerd.runc.v1.Options")
}

/// Decodes runc's options. Refuses those that ask for what Palisade does not
/// do. Others say where runc keeps its state, and who owns streams that are
/// the process's here; `shim_cgroup` is read at start.
fn check_runc_options(any: &Any) -> Result<api::Options> {
    let runc = api::Options::parse_from_bytes(&any.value)
        .map_err(|e| Error::invalid(format!("options: decode containerd.runc.v1.Options: {e}")))?;
    let refused = [
        ("BinaryName", !runc.binary_name.is_empty(), "Palisade runs no other runtime"),
        ("NoPivotRoot", runc.no_pivot_root, "a container's root is always changed by pivot_root"),
        ("NoNewKeyring", runc.no_new_keyring, "each container has a session keyring of its own"),
    ];
    match refused.iter().find(|(_, set, _)| *set) {
        Some((name, _, why)) => {
            Err(Error::invalid(format!("options: {name}: {why}; leave it out")))
        }
        None => Ok(runc),
    }
}

/// Decodes `config_path` and `config_body` of a `runtimeoptions.v1.Options`,
/// which 1.6 calls `cri.runtimeoptions.v1.Options`.
fn runtime_options(any: &Any) -> Result<(String, String)> {
    let name = any.type_url.rsplit('/').next().unwrap_or_default();
    if !is_runtime_options(any) {
        return Err(Error::invalid(format!(
            "options are a {name}, expected a runtimeoptions.v1.Options"
        )));
    }
    let (mut path, mut body) = (String::new(), String::new());
    let mut input = CodedInputStream::from_bytes(&any.value);
    let mut read = || -> containerd_shim_protos::protobuf::Result<()> {
        while let Some(tag) = input.read_raw_tag_or_eof()? {
            match tag {
                // Field 2 and 3, both length-delimited: (field << 3) | 2.
                18 => path = input.read_string()?,
                26 => body = input.read_string()?,
                _ => containerd_shim_protos::protobuf::rt::skip_field_for_tag(tag, &mut input)?,
            }
        }
        Ok(())
    };
    read().map_err(|e| Error::invalid(format!("options: decode {name}: {e}")))?;
    Ok((path, body))
}

/// Returns the path of the `palisade-sandbox` executable: beside this one.
pub(crate) fn palisade() -> Result<PathBuf> {
    let shim = std::env::current_exe().context(|| "find the shim's own executable")?;
    Ok(shim.with_file_name("palisade-sandbox"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: &[u8]) -> Any {
        Any { type_url: type_url.into(), value: value.into(), ..Default::default() }
    }

    fn body(text: &str) -> Any {
        let mut value = vec![10, 1, b'x', 26, u8::try_from(text.len()).unwrap()];
        value.extend_from_slice(text.as_bytes());
        any("runtimeoptions.v1.Options", &value)
    }

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(k, v)| (format!("dev.palisade.{k}"), (*v).to_string())).collect()
    }

    #[test]
    fn options_come_from_toml() {
        let options = Options::read(Some(&body("userns = 'spec'\ncpu_minimum = 1"))).unwrap();
        assert_eq!((options.userns, options.cpu_minimum()), (UsernsOption::Spec, 1));
        let options = Options::read(Some(&body("SystemdCgroup = true"))).unwrap();
        assert_eq!(options.cgroup_driver, CgroupDriver::Systemd);
    }

    #[test]
    fn options_come_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "debug = true").unwrap();
        let path = file.path().to_str().unwrap();
        let mut value = vec![18, u8::try_from(path.len()).unwrap()];
        value.extend_from_slice(path.as_bytes());
        assert!(Options::read(Some(&any("cri.runtimeoptions.v1.Options", &value))).unwrap().debug);
        let missing = any("runtimeoptions.v1.Options", b"\x12\x08/nowhere");
        assert!(Options::read(Some(&missing)).unwrap_err().to_string().contains("/nowhere"));
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = Options::read(Some(&body("userspace = 1"))).unwrap_err().to_string();
        assert!(error.contains("userspace") && error.contains("config_body"), "{error}");
        let error = Options::read(Some(&any("x/some.Other", b""))).unwrap_err().to_string();
        assert!(error.contains("some.Other"), "{error}");
        let error =
            Options::read(Some(&body("allow_annotations = ['id_range_start']"))).unwrap_err();
        assert!(error.to_string().contains("id_range_start"), "{error}");
        let error = Options::default().annotated(&annotations(&[("colour", "red")])).unwrap_err();
        assert!(error.to_string().contains("dev.palisade.colour"), "{error}");
    }

    #[test]
    fn runc_s_options_are_read_or_refused_by_name() {
        let read = |set: &dyn Fn(&mut api::Options)| {
            let mut runc = api::Options::new();
            set(&mut runc);
            let value = runc.write_to_bytes().unwrap();
            Options::read(Some(&any("containerd.runc.v1.Options", &value)))
        };
        assert_eq!(read(&|_| ()).unwrap().cgroup_driver, CgroupDriver::Auto);
        let systemd = read(&|runc| runc.systemd_cgroup = true).unwrap();
        assert_eq!(systemd.cgroup_driver, CgroupDriver::Systemd);
        let refused = |set: &dyn Fn(&mut api::Options), name: &str| {
            let error = read(set).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        };
        refused(&|runc| runc.binary_name = "crun".into(), "BinaryName");
        refused(&|runc| runc.no_pivot_root = true, "NoPivotRoot");
        refused(&|runc| runc.no_new_keyring = true, "NoNewKeyring");
    }

    #[test]
    fn annotations_tighten() {
        let node =
            Options { userns: UsernsOption::Never, cpu_minimum: Some(4), ..Options::default() };
        let pod =
            node.annotated(&annotations(&[("userns", "auto"), ("cpu_minimum", "1")])).unwrap();
        assert_eq!((pod.userns, pod.cpu_minimum()), (UsernsOption::Auto, 1));
    }

    #[test]
    fn annotations_loosen_only_if_the_node_allows_it() {
        let loosen = annotations(&[("userns", "never")]);
        let error = Options::default().annotated(&loosen).unwrap_err().to_string();
        assert!(error.contains("allow_annotations"), "{error}");
        let node = Options { allow_annotations: vec!["userns".into()], ..Options::default() };
        assert_eq!(node.annotated(&loosen).unwrap().userns, UsernsOption::Never);
    }

    #[test]
    fn annotations_allow_the_parts_that_the_node_lists() {
        let node = |text: &str| Options::parse(text).unwrap();
        let ask = |options: &Options, value: &str| {
            options.clone().annotated(&annotations(&[("baseline_allow", value)]))
        };
        let names = |options: Options| options.baseline().allowed.names().collect::<Vec<_>>();
        let none = node("");
        assert!(ask(&none, "user_namespaces").unwrap_err().to_string().contains("would loosen"));
        let one = node("allow_annotations = ['baseline_allow.user_namespaces']");
        assert_eq!(names(ask(&one, "user_namespaces").unwrap()), ["user_namespaces"]);
        for more in ["user_namespaces, io_uring", "['io_uring']"] {
            assert!(ask(&one, more).is_err(), "{more}");
        }
        let all = node("allow_annotations = ['baseline_allow']");
        assert_eq!(names(ask(&all, "bpf, keys").unwrap()), ["bpf", "keys"]);
        assert_eq!(names(ask(&all, "bpf keys").unwrap()), ["bpf", "keys"]);
        let some = node("baseline_allow = ['bpf', 'keys']");
        assert_eq!(names(ask(&some, "['keys']").unwrap()), ["keys"]);
        assert_eq!(names(ask(&some, "").unwrap()), [""; 0]);
        assert!(ask(&all, "colour").unwrap_err().to_string().contains("io_uring"));
        assert!(Options::parse("allow_annotations = ['baseline_allow.colour']").is_err());
        let level = |text: &str, value: &str| {
            let pod = node(text).annotated(&annotations(&[("baseline", value)]));
            pod.map(|options| options.baseline().level)
        };
        assert_eq!(level("", "strict").unwrap(), Level::Strict);
        assert!(level("", "off").is_err());
        assert_eq!(level("allow_annotations = ['baseline']", "off").unwrap(), Level::Off);
    }

    #[test]
    fn the_user_log_is_off_the_pod_s_or_a_file_of_the_node() {
        let read = |text: &str| Options::parse(text).map(|options| options.user_log);
        assert_eq!(read("").unwrap(), UserLog::Off);
        assert_eq!(read("user_log = 'pod'").unwrap(), UserLog::Pod);
        assert!(matches!(read("user_log = '/var/log/%POD%/%ID%'").unwrap(), UserLog::File(_)));
        for bad in ["relative", "", "Pod", "/a/%WHAT%", "/a/%ID", "/a/../b", "/", "/a/"] {
            let error = read(&format!("user_log = '{bad}'")).unwrap_err().to_string();
            assert!(error.contains("user_log"), "{bad:?}: {error}");
        }
        let error = Options::parse("user_log_format = 'xml'").unwrap_err().to_string();
        assert!(error.contains("user_log_format"), "{error}");
        let pod = |node: &str, value: &str| {
            let node = Options::parse(node).unwrap();
            node.annotated(&annotations(&[("user_log", value)])).map(|options| options.user_log)
        };
        assert_eq!(pod("", "pod").unwrap(), UserLog::Pod);
        assert_eq!(pod("user_log = 'pod'", "pod").unwrap(), UserLog::Pod);
        assert!(pod("user_log = 'pod'", "off").unwrap_err().to_string().contains("would loosen"));
        assert!(pod("user_log = '/a'", "pod").unwrap_err().to_string().contains("would loosen"));
        assert!(pod("user_log = '/a'", "/a").is_ok());
        let permits = "allow_annotations = ['user_log']";
        assert_eq!(pod(&format!("user_log = 'pod'\n{permits}"), "off").unwrap(), UserLog::Off);
        // The shim writes it as root.
        let error = pod(permits, "/etc/cron.d/pod").unwrap_err().to_string();
        assert!(error.contains("dev.palisade.user_log") && error.contains("node"), "{error}");
    }

    #[test]
    fn views_are_on_and_a_pod_has_them_off_only_if_the_node_allows_it() {
        let pod = |node: &str, value: &str| {
            let node = Options::parse(node).unwrap();
            node.annotated(&annotations(&[("views", value)])).map(|options| options.views)
        };
        assert_eq!(Options::parse("").unwrap().views, ViewsOption::On);
        assert_eq!(pod("views = 'off'", "on").unwrap(), ViewsOption::On);
        assert_eq!(pod("views = 'off'", "off").unwrap(), ViewsOption::Off);
        assert!(pod("", "off").unwrap_err().to_string().contains("would loosen"));
        assert_eq!(pod("allow_annotations = ['views']", "off").unwrap(), ViewsOption::Off);
        for bad in ["true", "yes", "On", ""] {
            let error = pod("", bad).unwrap_err().to_string();
            assert!(error.contains("dev.palisade.views"), "{bad:?}: {error}");
        }
        let counts = |text: &str| Options::parse(text).unwrap().views();
        let views = Views { cpu_from_quota: true, cpu_minimum: 1 };
        assert_eq!((counts(""), counts("views = 'off'")), (Some(views), None));
        assert_eq!(counts("cpu_minimum = 2"), Some(Views { cpu_minimum: 2, ..views }));
        assert_eq!(
            counts("cpu_from_quota = false"),
            Some(Views { cpu_from_quota: false, ..views })
        );
        let error = Options::parse("views = 'yes'").unwrap_err().to_string();
        assert!(error.contains("views = \"yes\": expected"), "{error}");
    }

    #[test]
    fn a_pod_forbids_that_it_is_saved_and_never_allows_it() {
        let pod = |node: &str, value: &str| {
            let node = Options::parse(node).unwrap();
            node.annotated(&annotations(&[("checkpoint", value)])).map(|options| options.checkpoint)
        };
        assert!(!Options::parse("").unwrap().checkpoint);
        assert!(!pod("checkpoint = true", "false").unwrap());
        assert!(pod("checkpoint = true", "true").unwrap());
        assert!(!pod("", "false").unwrap());
        assert!(pod("", "true").unwrap_err().to_string().contains("dev.palisade.checkpoint"));
        assert!(Options::parse("allow_annotations = ['checkpoint']").is_err());
        assert!(pod("", "yes").is_err());
        let error = Options::parse("criu = 'bin/criu'").unwrap_err().to_string();
        assert!(error.contains("criu") && error.contains("absolute"), "{error}");
        let criu = Options::parse("criu = '/opt/criu'").unwrap().criu;
        assert_eq!(criu, PathBuf::from("/opt/criu"));
    }

    /// Returns all keys, from an error of the parser.
    fn keys() -> Vec<String> {
        let error = toml::from_str::<Options>("colour = 'red'").unwrap_err();
        error.message().split('`').skip(3).step_by(2).map(str::to_owned).collect()
    }

    #[test]
    fn the_example_has_every_option_with_its_default() {
        let example = include_str!("../package/config.toml");
        assert_eq!(Options::parse(example).unwrap(), Options::default());
        let lines = example.lines().filter_map(|line| line.strip_prefix("# "));
        let settings: Vec<_> = lines.filter(|line| line.contains(" = ")).collect();
        let named: Vec<_> =
            settings.iter().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
        for key in keys() {
            assert!(named.contains(&key.as_str()), "the example lacks {key}");
        }
        let settings =
            settings.into_iter().filter(|line| keys().iter().any(|key| line.starts_with(key)));
        let text = settings.collect::<Vec<_>>().join("\n");
        // Whether it is set makes a difference to views.
        let set = Options { cpu_minimum: Some(2), ..Options::default() };
        assert_eq!(Options::parse(&text).unwrap(), set, "{text}");
    }

    #[test]
    fn the_manual_and_the_options_page_name_every_option() {
        let manual = include_str!("../package/palisade-config.toml.5");
        let page = include_str!("../../docs/options.md");
        let example = include_str!("../package/config.toml");
        for key in keys() {
            assert!(manual.contains(&format!("\n.BR {key} ")), "the manual lacks {key}");
            let row = page.lines().find(|line| line.starts_with(&format!("| `{key}` | ")));
            let row = row.unwrap_or_else(|| panic!("docs/options.md has no row for {key}"));
            let setting = format!("# {key} = ");
            let default = example.lines().find_map(|line| line.strip_prefix(&setting)).unwrap();
            assert!(row.contains(&format!(" | `{default}` | ")), "{key} is {default} by default");
        }
    }

    #[test]
    fn the_manual_s_example_is_accepted() {
        let manual = include_str!("../package/palisade-config.toml.5");
        let (_, example) = manual.split_once(".EX\n").unwrap();
        let (example, _) = example.split_once(".EE").unwrap();
        Options::parse(&example.replace("\\(dq", "\"")).unwrap();
    }
}
