//! The Debian package, installed and run by a real systemd that each test boots for itself; see [`machine`].
//!
//! That takes root, systemd and dpkg. Where the machine lacks one of them, or lets nobody make namespaces,
//! every test says that it was skipped; with `M40_REQUIRE_SYSTEMD=1` it fails instead. `M40_SYSTEMD_ROOT`
//! names the root folder of another system to boot, such as one that debootstrap has made.

mod activation;
mod confinement;
mod installed;
mod machine;
mod package;
mod service;
