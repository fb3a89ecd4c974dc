//! The option `user_log`: where calls are told that were refused to containers.

use std::path::PathBuf;

use serde::Deserialize;

/// The place of the lines.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum UserLog {
    /// None: nothing is told, and no call is slower.
    Off,
    /// The log of the container itself.
    Pod,
    /// A file of the host.
    File(FileName),
}

/// The form of the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum UserLogFormat {
    /// Sentences.
    Text,
    /// One object of JSON each.
    Json,
}

/// The absolute path of a file, with places for names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileName(String);

/// What stands for a name in a path: the container's ID, the sandbox's, and containerd's
/// namespace.
const NAMES: [&str; 3] = ["ID", "POD", "NAMESPACE"];

impl UserLog {
    /// Returns the option's value.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Off => "off",
            Self::Pod => "pod",
            Self::File(FileName(path)) => path,
        }
    }
}

impl TryFrom<String> for UserLog {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "off" => Ok(Self::Off),
            "pod" => Ok(Self::Pod),
            path if path.starts_with('/') => FileName::parse(path).map(Self::File),
            _ => Err(format!(
                "user_log = {text:?}: expected \"off\", \"pod\", or the absolute path of a file"
            )),
        }
    }
}

impl TryFrom<String> for UserLogFormat {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("user_log_format = {text:?}: expected \"text\" or \"json\"")),
        }
    }
}

impl FileName {
    fn parse(path: &str) -> Result<Self, String> {
        let bad = |why: String| Err(format!("user_log = {path:?}: {why}"));
        let mut parts = path[1..].split('/');
        if parts.clone().any(|part| matches!(part, "" | "." | "..")) {
            return bad("expected the path of a file without \".\" and \"..\"".into());
        }
        // Every second piece stands between two signs.
        let unknown = parts.find_map(|part| {
            let pieces: Vec<_> = part.split('%').collect();
            let name = pieces.iter().skip(1).step_by(2).find(|name| !NAMES.contains(name));
            let open = pieces.len() % 2 == 0;
            name.map(|name| (*name).to_owned()).or_else(|| open.then(|| part.to_owned()))
        });
        match unknown {
            Some(name) => bad(format!("{name:?} is none of %ID%, %POD% and %NAMESPACE%")),
            None => Ok(Self(path.to_owned())),
        }
    }

    /// Returns the path for a container; `None` if a name would lead elsewhere.
    pub(crate) fn path(&self, container: &str, pod: &str, namespace: &str) -> Option<PathBuf> {
        let mut path = self.0.clone();
        for (name, value) in NAMES.into_iter().zip([container, pod, namespace]) {
            let sign = format!("%{name}%");
            if !path.contains(&sign) {
                continue;
            }
            if value.contains(['/', '\0', '%']) || matches!(value, "" | "." | "..") {
                return None;
            }
            path = path.replace(&sign, value);
        }
        Some(path.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_path_and_lead_nowhere_else() {
        let UserLog::File(name) =
            UserLog::try_from("/log/%NAMESPACE%/%POD%-%ID%.log".to_owned()).unwrap()
        else {
            panic!("no file")
        };
        assert_eq!(name.path("c", "p", "k8s.io").unwrap().to_str(), Some("/log/k8s.io/p-c.log"));
        for bad in ["", ".", "..", "../x", "a/b", "%POD%"] {
            assert_eq!(name.path(bad, "p", "n"), None, "{bad:?}");
        }
    }
}
