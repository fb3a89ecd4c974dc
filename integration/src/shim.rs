//! The shim without a containerd: started as containerd does, and called over
//! its own socket, with bundles and requests that containerd would never pass
//! on.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use containerd_shim_protos::TaskClient;
use containerd_shim_protos::api::{
    CreateTaskRequest, DeleteRequest, KillRequest, ShutdownRequest, StartRequest, WaitRequest,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::sandbox_sync::SandboxClient;
use serde_json::Value;
use ttrpc::context::{self, Context};

use crate::containerd::{Containerd, palisade_executables, started_by};
use crate::{image, keep, spec, wait};

/// An OCI bundle: `config.json` and `rootfs`.
#[derive(Debug)]
pub struct Bundle {
    /// Its directory.
    pub path: PathBuf,
    /// The container's ID.
    pub id: String,
    /// containerd's namespace.
    pub namespace: String,
    /// containerd's socket.
    pub address: String,
    /// A line of shell that starts the shim, up to the command.
    starter: Option<&'static str>,
}

impl Bundle {
    /// Makes a bundle for this line of shell, whose root file system is the
    /// test image. containerd only receives events.
    pub fn new(containerd: &Containerd, id: &str, script: &str) -> Bundle {
        let path = containerd.directory().join("bundles").join(id);
        fs::create_dir_all(path.join("rootfs")).expect("make a bundle");
        image::unpack_busybox(&path.join("rootfs"));
        let namespace = containerd.namespace();
        let bundle = Bundle {
            path,
            id: id.to_owned(),
            address: containerd.address().to_string_lossy().into_owned(),
            namespace: namespace.clone(),
            starter: None,
        };
        bundle.write(&spec::container(&["sh", "-c", script], &containerd.cgroups_path(id)));
        containerd.track(id);
        bundle
    }

    /// Makes a bundle as containerd does for a sandbox of the Sandbox service:
    /// without a spec. Its ID is unique, since systemd names a scope after it.
    pub fn of_sandbox(containerd: &Containerd) -> Bundle {
        let bundle = Bundle::new(containerd, &containerd.slot().name(), "");
        fs::remove_file(bundle.config()).expect("remove config.json");
        bundle
    }

    /// Changes its spec.
    pub fn spec(self, change: impl FnOnce(&mut Value)) -> Bundle {
        self.respec(change);
        self
    }

    /// Changes its spec, also after a container was made of it.
    pub fn respec(&self, change: impl FnOnce(&mut Value)) {
        let text = fs::read(self.config()).expect("read config.json");
        let mut spec = serde_json::from_slice(&text).expect("config.json is JSON");
        change(&mut spec);
        self.write(&spec);
    }

    /// Starts the shim by a line of shell to which its command is appended.
    pub fn started_by(mut self, starter: &'static str) -> Bundle {
        self.starter = Some(starter);
        self
    }

    /// Returns the path of its config.json.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    fn write(&self, spec: &Value) {
        fs::write(self.config(), spec.to_string()).expect("write config.json");
    }

    fn command(&self, action: &str) -> Command {
        let program = palisade_executables().join("containerd-shim-palisade-v1");
        let mut command = started_by(self.starter, &program);
        command
            .args(["-namespace", &self.namespace, "-id", &self.id, "-address", &self.address])
            .args(["-publish-binary", "containerd", action])
            .current_dir(&self.path)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("TTRPC_ADDRESS", format!("{}.ttrpc", self.address))
            .env("GRPC_ADDRESS", &self.address)
            .env("NAMESPACE", &self.namespace)
            .stdin(Stdio::null());
        command
    }

    /// Runs `start`. Returns a connection to the shim, or the output of a
    /// failed start.
    pub fn start_shim(&self) -> Result<Shim<'_>, String> {
        // There is no `log` FIFO, which containerd makes, so the shim does not
        // log.
        let output = self.command("start").output().expect("run the shim");
        if !output.status.success() {
            return Err(text_of(&output));
        }
        self.connect(&address_in(&output))
    }

    /// Runs `start` with this standard input, without containerd's variables in
    /// its environment.
    pub fn start_with_stdin(&self, input: &[u8]) -> Output {
        let file = self.path.join("stdin");
        fs::write(&file, input).expect("write the input");
        let input = fs::File::open(&file).expect("open the input");
        let mut command = self.command("start");
        for name in ["TTRPC_ADDRESS", "GRPC_ADDRESS", "NAMESPACE"] {
            command.env_remove(name);
        }
        command.stdin(input).output().expect("run the shim")
    }

    /// Connects to the shim at an address that `start` printed.
    pub fn connect(&self, address: &str) -> Result<Shim<'_>, String> {
        let client = ttrpc::Client::connect(address).map_err(|e| format!("{address}: {e}"))?;
        let (tasks, sandboxes) = (TaskClient::new(client.clone()), SandboxClient::new(client));
        Ok(Shim { bundle: self, tasks, sandboxes })
    }

    /// Runs `delete`, as containerd does once a shim is gone.
    pub fn delete(&self) -> Output {
        let mut command = self.command("delete");
        command.args(["-bundle", &self.path.to_string_lossy()]);
        command.output().expect("run the shim's delete")
    }

    /// Prepares `delete` in a process that waits until it is told to go on. Returns its ID.
    pub fn delete_when_told(&self) -> (i32, Told) {
        let mut command = Command::new("sh");
        let delete = self.command("delete");
        command
            .args(["-c", "read _; exec \"$@\"", "sh"])
            .arg(delete.get_program())
            .args(delete.get_args())
            .args(["-bundle", &self.path.to_string_lossy()])
            .current_dir(&self.path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("run a shell");
        (child.id().cast_signed(), Told(child))
    }

    /// Returns why this bundle cannot become a container: the error of the step
    /// that refuses it. Cleans up as containerd would.
    #[track_caller]
    pub fn refusal(&self) -> String {
        let refusal = match self.start_shim() {
            Err(error) => error,
            Ok(shim) => {
                let refused = shim.create().err();
                shim.shutdown();
                refused.unwrap_or_else(|| panic!("{} was created", self.path.display()))
            }
        };
        let deleted = self.delete();
        assert!(deleted.status.success(), "delete: {}", text_of(&deleted));
        refusal
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        if !keep::keeps() {
            let _ = self.delete();
        }
    }
}

fn text_of(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    )
}

/// Returns the address that `start` printed, alone or in JSON.
fn address_in(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match serde_json::from_str::<Value>(&text) {
        Ok(reply) => reply["address"].as_str().expect("an address in the reply").to_owned(),
        Err(_) => text,
    }
}

/// A process that waits until it is told to go on.
#[derive(Debug)]
pub struct Told(std::process::Child);

impl Told {
    /// Tells it, and leaves it to the one who traces it.
    pub fn go(mut self) {
        self.0.stdin.take().expect("its input").write_all(b"\n").expect("tell it");
    }
}

/// A connection to a running shim.
pub struct Shim<'a> {
    bundle: &'a Bundle,
    /// Its Task service.
    pub tasks: TaskClient,
    /// Its Sandbox service.
    pub sandboxes: SandboxClient,
}

impl Shim<'_> {
    /// Returns the context of a request.
    pub fn context(&self) -> Context {
        let deadline = wait::deadline().as_nanos().try_into().expect("a short time");
        let mut context = context::with_timeout(deadline);
        context.add("containerd-namespace-ttrpc".to_owned(), self.bundle.namespace.clone());
        context
    }

    /// Returns a Create request for the bundle.
    pub fn request(&self) -> CreateTaskRequest {
        CreateTaskRequest {
            id: self.bundle.id.clone(),
            bundle: self.bundle.path.to_string_lossy().into_owned(),
            ..Default::default()
        }
    }

    /// Creates the container. Returns its process ID or the error.
    pub fn create(&self) -> Result<u32, String> {
        self.create_with(&self.request())
    }

    /// Creates a container with any request.
    pub fn create_with(&self, request: &CreateTaskRequest) -> Result<u32, String> {
        let created = self.tasks.create(self.context(), request);
        created.map(|created| created.pid).map_err(|e| e.to_string())
    }

    /// Creates the container with runtime options.
    pub fn create_with_options(&self, type_url: &str, value: Vec<u8>) -> Result<u32, String> {
        let options = Any { type_url: type_url.to_owned(), value, ..Default::default() };
        let mut request = self.request();
        request.options = Some(options).into();
        self.create_with(&request)
    }

    /// Starts the container, waits for its end and deletes it. Returns its exit
    /// code.
    pub fn run_to_end(&self) -> Result<u32, String> {
        let id = || self.bundle.id.clone();
        let start = StartRequest { id: id(), ..Default::default() };
        self.tasks.start(self.context(), &start).map_err(|e| e.to_string())?;
        let wait = WaitRequest { id: id(), ..Default::default() };
        let ended = self.tasks.wait(self.context(), &wait).map_err(|e| e.to_string())?;
        self.delete()?;
        Ok(ended.exit_status)
    }

    /// Sends a signal to the init.
    pub fn kill(&self, signal: u32) -> Result<(), String> {
        let request = KillRequest { id: self.bundle.id.clone(), signal, ..Default::default() };
        self.tasks.kill(self.context(), &request).map(|_| ()).map_err(|e| e.to_string())
    }

    /// Deletes the container.
    pub fn delete(&self) -> Result<u32, String> {
        let request = DeleteRequest { id: self.bundle.id.clone(), ..Default::default() };
        let deleted = self.tasks.delete(self.context(), &request);
        deleted.map(|deleted| deleted.exit_status).map_err(|e| e.to_string())
    }

    /// Requests the end of the shim, which may come before the reply.
    pub fn shutdown(&self) {
        let request = ShutdownRequest { id: self.bundle.id.clone(), ..Default::default() };
        let short = wait::patience(5).as_nanos().try_into().expect("a short time");
        let _ = self.tasks.shutdown(context::with_timeout(short), &request);
    }
}

impl std::fmt::Debug for Shim<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shim").field("bundle", self.bundle).finish_non_exhaustive()
    }
}

/// Makes a symbolic link in a bundle.
pub fn symlink(target: &str, at: &Path) {
    std::os::unix::fs::symlink(target, at).expect("make a symbolic link");
}
