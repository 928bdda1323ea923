//! What the service may reach of the machine.

use crate::machine::Plan;

/// As the driver's package brings it: makes the nodes that it is asked for.
const NVIDIA_MODPROBE: &str = "#!/bin/sh
[ \"$*\" = '-c 255 -c 0' ] || exit 0
mknod -m 666 /dev/nvidiactl c 195 255
mknod -m 666 /dev/nvidia0 c 195 0
";

/// Run before m40d, confined as it is.
const PROBE: &str = "#!/bin/sh
for node in nvidia0 nvidiactl other null; do head -c 0 /dev/$node 2>&1 && echo $node is open; done
touch /etc/m40d/probe /usr/probe /var/lib/probe 2>&1
touch /var/lib/m40d/probe && echo state is written
ulimit -n
";

/// With a class of devices that the test's machine need not have.
const PREPARE: &str = "
printf 'Character devices:\\n  1 mem\\n195 nvidia\\n' > /run/devices
mount --bind /run/devices /proc/devices
mknod -m 666 /dev/other c 10 200
";

#[test]
fn of_devices_it_gets_those_of_nvidia_only_and_they_are_made_before_it_starts() {
    let plan = Plan::new();
    let plan = plan.map(|plan| plan.file("/usr/bin/nvidia-modprobe", NVIDIA_MODPROBE));
    let Some(machine) = plan.and_then(Plan::boot) else { return };
    machine.ok(PREPARE);
    machine.write("/usr/bin/probe", PROBE);
    let drop_in = "[Service]\nExecStartPre=/usr/bin/probe\n";
    machine.write("/etc/systemd/system/m40d.service.d/probe.conf", drop_in);
    machine.install(crate::package::built());
    machine.ok("systemctl is-active m40d");
    let log = machine.ok("journalctl --boot --no-pager --output cat --identifier probe");
    for said in [
        // There, and let by: only that nothing is behind it.
        "'/dev/nvidia0' for reading: No such device",
        "'/dev/nvidiactl' for reading: No such device",
        "'/dev/other' for reading: Operation not permitted",
        "null is open",
        "'/etc/m40d/probe': Permission denied",
        "'/usr/probe': Read-only file system",
        "'/var/lib/probe': Read-only file system",
        "state is written",
    ] {
        assert!(log.contains(said), "{said:?} is not in {log}");
    }
}
