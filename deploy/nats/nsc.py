#!/usr/bin/env python3
"""The roles of roles.conf for a server in operator mode, where accounts and users are JWTs.

    ./nsc.py [FOLDER]     prints the lines of `nsc` that make accounts and roles, and a user of each role: FOLDER/<role>.creds
    ./nsc.py --claims     prints the same as JSON, by account: its claims, and the template of each role

A role is a scoped signing key of its account: a user that is signed with it has the permissions of the role, and its JWT stays small
(a CONNECT with the permissions of a role in it would be longer than nats-server takes, 4096 bytes).
"""

import json
import pathlib
import re
import shlex
import sys

TOKEN = re.compile(r'#[^\n]*|"([^"]*)"|([{}\[\]:,])|([^\s{}\[\]:,#"]+)')
UNITS = {"s": 1, "m": 60, "h": 3600}


def tokens(text):
    for match in TOKEN.finditer(text):
        if not match[0].startswith("#"):
            yield match[0].strip('"'), match[2]


def parsed(words, end=None):
    """A block of `key: value`, or `key { … }`, up to its end."""
    block = {}
    for word, mark in words:
        if mark == end and mark is not None:
            break
        if mark != ",":
            block[word] = value(words)
    return block


def value(words):
    word, mark = next(words)
    if mark == ":":
        word, mark = next(words)
    if mark == "{":
        return parsed(words, "}")
    if mark != "[":
        return word
    items = []
    for word, mark in words:
        if mark == "]":
            break
        if mark != ",":
            items.append(parsed(words, "}") if mark == "{" else word)
    return items


def nanoseconds(text):
    return int(text[:-1]) * UNITS[text[-1]] * 10**9


def permission(given):
    return {"allow": given} if isinstance(given, list) else given


def template(permissions):
    of = {"pub": permission(permissions["publish"]), "sub": permission(permissions["subscribe"])}
    if answers := permissions.get("allow_responses"):
        of["resp"] = {"max": int(answers["max"]), "ttl": nanoseconds(answers["expires"])}
    return of | {"subs": -1, "data": -1, "payload": -1}


def export(given):
    kind = "service" if "service" in given else "stream"
    of = {"subject": given[kind], "type": kind}
    if given.get("response_type") == "stream":
        of["response_type"] = "Stream"
    if "threshold" in given:
        of["response_threshold"] = nanoseconds(given["threshold"])
    return of


def imported(given):
    kind = "service" if "service" in given else "stream"
    return {"subject": given[kind]["subject"], "account": given[kind]["account"], "type": kind}


def account(given):
    roles = {user["user"]: template(user.get("permissions") or given["default_permissions"]) for user in given["users"]}
    return {
        "jetstream": given.get("jetstream") == "enabled",
        "exports": [export(one) for one in given.get("exports", [])],
        "imports": [imported(one) for one in given.get("imports", [])],
        "roles": roles,
    }


def lines(accounts, folder):
    # Who exports comes before who imports.
    ordered = sorted(accounts.items(), key=lambda of: bool(of[1]["imports"]))
    for name, of in ordered:
        yield f"nsc add account --name {name}"
        if of["jetstream"]:
            limits = ["mem-storage", "disk-storage", "streams", "consumer"]
            yield f"nsc edit account --name {name} " + " ".join(f"--js-{limit} -1" for limit in limits)
        for one in of["exports"]:
            more = " --response-type Stream" if "response_type" in one else ""
            if "response_threshold" in one:
                more += f" --response-threshold {one['response_threshold'] // 10**9}s"
            what = "--service" if one["type"] == "service" else ""
            yield f"nsc add export --account {name} {what} --subject {shlex.quote(one['subject'])}{more}"
        for one in of["imports"]:
            of_account = f'"$(nsc describe account --name {one["account"]} --field sub | tr -d \'"\')"'
            subject, what = shlex.quote(one["subject"]), "--service" if one["type"] == "service" else ""
            yield (
                f"nsc add import --account {name} --src-account {of_account} {what} --name {subject}"
                f" --remote-subject {subject} --local-subject {subject}"
            )
        for role, may in of["roles"].items():
            flags = [("--allow-pub", may["pub"]["allow"]), ("--deny-pub", may["pub"].get("deny", []))]
            flags.append(("--allow-sub", may["sub"]["allow"]))
            said = " ".join(f"{flag} {shlex.quote(','.join(subjects))}" for flag, subjects in flags if subjects)
            if "resp" in may:
                said += f" --allow-pub-response={may['resp']['max']} --response-ttl {may['resp']['ttl'] // 10**9}s"
            yield f"nsc edit signing-key --account {name} --sk generate --role {role} {said}"
            yield f"nsc add user --account {name} --name {role} -K {role}"
            yield f"nsc generate creds --account {name} --name {role} > {shlex.quote(folder)}/{role}.creds"


def main(arguments):
    text = pathlib.Path(__file__).with_name("roles.conf").read_text(encoding="utf-8")
    accounts = {name: account(of) for name, of in parsed(tokens(text))["accounts"].items()}
    if arguments == ["--claims"]:
        print(json.dumps(accounts))
    else:
        print("set -eu\numask 077")
        print("\n".join(lines(accounts, arguments[0] if arguments else ".")))


main(sys.argv[1:])
