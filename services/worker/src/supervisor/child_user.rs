//! The user that the processes of a kind run as (`user` in `handlers.toml`). It is found when the file is read; the guard becomes
//! that user before it starts the command, so that the user of the worker stays out of reach. Linux only.

use std::ffi::OsString;

use serde::Deserialize;

/// A user as `handlers.toml` names one.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum UserName {
    Id(u32),
    Name(String),
}

/// A user of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChildUser {
    pub(crate) name: String,
    home: OsString,
    ids: UserIds,
}

/// The ids of a user, as a guard gets them: `<user>:<group>:<group>,<group>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UserIds {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl ChildUser {
    /// The variables of a login of this user.
    pub(super) fn environment(&self) -> [(&'static str, OsString); 3] {
        [("HOME", self.home.clone()), ("USER", self.name.clone().into()), ("LOGNAME", self.name.clone().into())]
    }

    pub(super) fn ids(&self) -> &UserIds {
        &self.ids
    }

    /// Gives a file to this user.
    ///
    /// # Errors
    /// When the system refuses it.
    pub(crate) fn give(&self, file: &std::path::Path) -> std::io::Result<()> {
        std::os::unix::fs::chown(file, Some(self.ids.user), Some(self.ids.group))
    }
}

impl UserIds {
    pub(super) fn to_text(&self) -> String {
        let groups: Vec<String> = self.groups.iter().map(u32::to_string).collect();
        format!("{}:{}:{}", self.user, self.group, groups.join(","))
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, ':');
        let (user, group) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let groups = parts.next()?.split(',').map(str::parse).collect::<Result<_, _>>().ok()?;
        Some(Self { user, group, groups })
    }
}

#[cfg(target_os = "linux")]
mod linux {
    use std::ffi::CString;
    use std::io;
    use std::os::fd::BorrowedFd;

    use anyhow::{Context, bail};
    use nix::unistd::{Gid, Uid, User, fchown, getgrouplist, setgid, setgroups, setuid};
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

    use super::{ChildUser, UserIds, UserName};

    /// What a worker needs that is not root, with their numbers in capabilities(7): to become the user, to signal its processes, and
    /// to give it the files of large arguments.
    const NEEDED: [(&str, u32); 4] = [("CHOWN", 0), ("KILL", 5), ("SETGID", 6), ("SETUID", 7)];

    impl ChildUser {
        /// Looks a user up.
        ///
        /// # Errors
        /// When this machine has no such user.
        pub(in crate::supervisor) fn find(name: &UserName) -> anyhow::Result<Self> {
            let (found, shown) = match name {
                UserName::Id(id) => (User::from_uid(Uid::from_raw(*id))?, id.to_string()),
                UserName::Name(name) => (User::from_name(name)?, name.clone()),
            };
            let Some(User { name, uid, gid, dir, .. }) = found else {
                bail!("`user`: there is no user {shown} on this machine");
            };
            let groups = getgrouplist(&CString::new(name.as_str())?, gid);
            let groups = groups.with_context(|| format!("`user`: the groups of {name} cannot be read"))?;
            let groups = groups.into_iter().map(Gid::as_raw).collect();
            Ok(Self { name, home: dir.into(), ids: UserIds { user: uid.as_raw(), group: gid.as_raw(), groups } })
        }

        /// Checks that this process may start others as this user.
        ///
        /// # Errors
        /// One sentence that says what it would need.
        pub(crate) fn check_allowed(&self) -> Result<(), String> {
            let (name, me) = (&self.name, Uid::effective());
            if me.as_raw() == self.ids.user {
                return Err(format!(
                    "`user`: {name} is the user of the worker itself, from which it is to be kept apart"
                ));
            }
            let status = procfs::process::Process::myself().and_then(|process| process.status());
            let has = status.map_or(0, |status| status.capeff);
            if NEEDED.iter().all(|(_, number)| has >> number & 1 == 1) {
                return Ok(());
            }
            let needed = NEEDED.map(|(name, _)| name).join(", ");
            Err(format!(
                "`user`: the worker may not start processes as {name}, because it runs as user {me} without the capabilities {needed}: run it as root"
            ))
        }
    }

    impl UserIds {
        /// Has this process be this user from now on. Its pipes are given to the user first, so that `/dev/stderr` can be opened.
        ///
        /// # Errors
        /// When the system refuses it: the process must do nothing more then.
        pub(in crate::supervisor) fn adopt(&self, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
            let (user, group) = (Uid::from_raw(self.user), Gid::from_raw(self.group));
            for pipe in pipes {
                let _ = fchown(pipe, Some(user), Some(group));
            }
            let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
            setgroups(&groups)?;
            setgid(group)?;
            setuid(user)?;
            // Those of a worker that is not root would stay with this process, and with the command: to change the user takes
            // capabilities away from root alone.
            rustix::thread::clear_ambient_capability_set()?;
            let none = CapabilitySet::empty();
            set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
            Ok(())
        }
    }
}

#[cfg(not(target_os = "linux"))]
impl ChildUser {
    pub(super) fn find(_: &UserName) -> anyhow::Result<Self> {
        anyhow::bail!("`user` works on Linux only")
    }

    pub(crate) fn check_allowed(&self) -> Result<(), String> {
        Err("`user` works on Linux only".to_owned())
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn ids_read_back_and_unknown_users_are_named() {
        let root = ChildUser::find(&UserName::Name("root".into())).unwrap();
        assert_eq!(root, ChildUser::find(&UserName::Id(0)).unwrap());
        assert_eq!(UserIds::parse(&root.ids.to_text()), Some(root.ids.clone()));
        assert!(["", "1", "1:2", "1:2:", "a:b:c", "1:2:3,x"].iter().all(|text| UserIds::parse(text).is_none()));
        let unknown = ChildUser::find(&UserName::Name("no-such-user".into())).unwrap_err();
        assert_eq!(unknown.to_string(), "`user`: there is no user no-such-user on this machine");
    }
}
