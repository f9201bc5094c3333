"""The file of a node, such as node.yaml: what it takes from whom, what it does with it, and where that goes."""

from __future__ import annotations

import ipaddress
import os
import re
import ssl
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from metricunet.errors import InputError
from metricunet.files.exported import read_any_card
from metricunet.files.yaml_file import read_yaml
from metricunet.inference.case_files import chosen_structures
from metricunet.inference.onnx_predictor import Provider, provider_for
from metricunet.inference.runtimes import Runtime, runtime_for

#: Names of rules and destinations stand in logs, in the ledger and in addresses.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
#: `30 days` and the like.
SPAN = re.compile(r"(\d{1,6}) ?(second|minute|hour|day)s?")
GB = 1 << 30
MB = 1 << 20
Role = Literal["look", "decide", "send"]


def _ae_title(value: str) -> str:
    if not (
        0 < len(value) <= 16 and value.isascii() and value.isprintable() and "\\" not in value and value.strip()
    ):
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash")
    return value.strip()


def _name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name has 1 to 32 letters, digits, dots, dashes or underlines")
    return value


def _span(value: object) -> object:
    if isinstance(value, str) and (found := SPAN.fullmatch(value.strip())):
        return timedelta(**{f"{found[2]}s": int(found[1])})
    if isinstance(value, timedelta):
        return value
    raise ValueError("expected a number and a unit, such as 30 days or 12 hours")


def _network(value: object) -> object:
    if isinstance(value, str):
        return ipaddress.ip_network(value, strict=False)
    raise ValueError("expected an IP address such as 10.0.0.7, or a network such as 10.0.0.0/24")


def _fits(text: str, pattern: str) -> bool:
    """Tell whether a text is as a pattern says, in which * and ? alone mean more than themselves."""
    return fnmatchcase(text, pattern.replace("[", "[[]"))


def _one_or_more(value: object) -> object:
    return value if isinstance(value, list | tuple) else [value]


def _name_or_names(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _web_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.password:
        raise ValueError("expected an address such as https://pacs.example.org/dicom-web, without a password")
    return value.rstrip("/")


def _origin(value: str) -> str:
    """Return an origin as browsers state it: in small letters, without the usual port."""
    parts = urlsplit(_web_address(value))
    if parts.path or parts.query or parts.fragment:
        raise ValueError("expected no path, as in https://node.example.org: the pages need a host of their own")
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    usual = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}" + ("" if parts.port in (None, usual) else f":{parts.port}")


AeTitle = Annotated[str, AfterValidator(_ae_title)]
Name = Annotated[str, AfterValidator(_name)]
Span = Annotated[timedelta, BeforeValidator(_span)]
Port = Annotated[int, Field(ge=1, le=65535)]
Network = Annotated[ipaddress.IPv4Network | ipaddress.IPv6Network, BeforeValidator(_network)]
Networks = Annotated[tuple[Network, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
Address = Annotated[ipaddress.IPv4Address | ipaddress.IPv6Address, BeforeValidator(ipaddress.ip_address)]
WebAddress = Annotated[str, AfterValidator(_web_address)]
Origin = Annotated[str, AfterValidator(_origin)]
Pattern = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]
Formats = Annotated[tuple[Literal["rtstruct", "seg"], ...], BeforeValidator(_one_or_more), Field(min_length=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(_Section):
    """The certificates of an encrypted connection, on either side.

    Attributes:
        certificate: of the node, PEM.
        key: of the node, PEM, without a password and readable by its owner alone.
        authorities: certificates of those whose signature on a peer's certificate counts, PEM.
    """

    certificate: Path
    key: Path
    authorities: Path

    def context(self, server: bool) -> ssl.SSLContext:
        """Return what connections are made with; either side must show a certificate.

        Args:
            server: whether the node is called, rather than calls.

        Raises:
            OSError: a file that cannot be read, or holds no certificate (`ssl.SSLError`).
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self.certificate, self.key)
        context.load_verify_locations(self.authorities)
        return context


class Peer(_Section):
    """Somebody who may send.

    Attributes:
        ae_title: by which it calls itself.
        addresses: that it may come from.
    """

    ae_title: AeTitle
    addresses: Networks


class Rule(_Section):
    """Which series are taken, and where what is made of them goes. The first rule that fits a series counts.

    Texts are compared whole, without regard to capitals; * stands for anything, ? for one character. Of several,
    one must fit.

    Attributes:
        name: of the rule.
        modality: of the series.
        description: SeriesDescription.
        protocol: ProtocolName.
        sender: AE title of the sender, `stow` for what came over the web, `folder` for the watched folder.
        destinations: by name; None for all.
    """

    name: Name
    modality: Literal["CT"] = "CT"
    description: Pattern = ("*",)
    protocol: Pattern = ("*",)
    sender: Pattern = ("*",)
    destinations: Annotated[tuple[str, ...] | None, BeforeValidator(_name_or_names)] = None

    def misfit(self, found: Mapping[str, str]) -> str:
        """Return which field of a series keeps the rule from taking it; empty where it takes it.

        Args:
            found: `modality`, `description`, `protocol` and `sender` of the series.
        """
        if found["modality"] != self.modality:
            return "modality"
        for field in ("sender", "description", "protocol"):
            text = found[field].casefold().strip()
            if not any(_fits(text, one.casefold()) for one in getattr(self, field)):
                return field
        return ""


class Destination(_Section):
    """Where structure sets and segmentations go: by C-STORE (`ae_title`, `host`, `port`), or by STOW-RS (`url`).

    Attributes:
        name: of the destination.
        ae_title: of the peer.
        host: of the peer.
        port: of the peer.
        url: of a DICOMweb server, to which `/studies` is added.
        token: file that holds a bearer token for `url`.
        tls: whether C-STORE is encrypted, with the node's certificate.
        formats: what is sent.
        commitment: whether a peer is asked, after C-STORE, to commit to keep what it has taken.
        send: `at_once`, or `on_accept`: when a person has accepted or corrected the case.
    """

    name: Name
    ae_title: AeTitle | None = None
    host: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    port: Port | None = None
    url: WebAddress | None = None
    token: Path | None = None
    tls: bool = False
    formats: Formats = ("rtstruct",)
    commitment: bool = False
    send: Literal["at_once", "on_accept"] = "at_once"

    @model_validator(mode="after")
    def _one_way(self) -> Destination:
        dimse = (self.ae_title, self.host, self.port)
        if self.url is None and None in dimse:
            raise ValueError("needs ae_title, host and port, or url")
        if self.url is not None and dimse != (None, None, None):
            raise ValueError("has both url and one of ae_title, host and port; keep either")
        if self.token is not None and self.url is None:
            raise ValueError("has a token, which is for url alone")
        if self.commitment and self.url is not None:
            raise ValueError("has commitment, which is for ae_title, host and port alone")
        return self


class Limits(_Section):
    """What the node may use, and what it takes at most.

    Attributes:
        memory_gb: of each worker; one that takes more is ended, and its case tried once more.
        free_disk_gb: that are kept free: nothing is taken in while there are fewer.
        object_mb: size of one object.
        slices: objects in a series.
        voxels: of a scan, in millions. More than 536 are never read, nor more than 268 where HU are no whole
            numbers.
        connections: at a time.
        case_time: that a worker may take for one case.
        give_up: how long a delivery is tried.
    """

    memory_gb: Annotated[float, Field(gt=0)] = 6.0
    free_disk_gb: Annotated[float, Field(ge=0)] = 5.0
    object_mb: Annotated[float, Field(gt=0)] = 512.0
    slices: Annotated[int, Field(ge=3)] = 2000
    voxels: Annotated[float, Field(gt=0)] = 400.0
    connections: Annotated[int, Field(ge=1)] = 20
    case_time: Span = timedelta(minutes=30)
    give_up: Span = timedelta(days=7)


class Proxy(_Section):
    """A reverse proxy that has asked users who they are.

    Attributes:
        addresses: that it comes from; the header counts from nowhere else.
        header: that names the user.
        origin: address of the pages as browsers know it, such as https://node.example.org.
    """

    addresses: Annotated[tuple[Address, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")] = "X-Forwarded-User"
    origin: Origin


class User(_Section):
    """Somebody whom the proxy names, and what that person may do.

    Attributes:
        name: as the proxy's header names it.
        roles: `look` at cases, `decide` on them, `send` them.
    """

    name: Annotated[str, Field(min_length=1, max_length=64)]
    roles: Annotated[tuple[Role, ...], BeforeValidator(_one_or_more), Field(min_length=1)]


class Web(_Section):
    """The web server: review pages, STOW-RS, metrics and health.

    Attributes:
        port: that it listens at.
        bind: address that it listens at. Beyond this machine it needs a proxy.
        proxy: that stands before it.
        users: whom the proxy names.
        stow: whether objects are taken by STOW-RS.
    """

    port: Port = 8080
    bind: Address = ipaddress.ip_address("127.0.0.1")
    proxy: Proxy | None = None
    users: tuple[User, ...] = ()
    stow: bool = True

    @property
    def host(self) -> str:
        """The address that it listens at, as it stands in an address of the web."""
        return f"[{self.bind}]" if self.bind.version == 6 else str(self.bind)


class Watch(_Section):
    """A folder that is looked into for DICOM files. They are copied, and never changed.

    Attributes:
        folder: to look into, with those below it.
    """

    folder: Path


class NodeConfig(_Section):
    """What a node does.

    Attributes:
        state: folder of all that the node keeps, for its owner alone.
        ae_title: by which the node is called.
        port: for DICOM.
        bind: address that it listens at; beyond the loopback it needs `tls` and `peers`.
        tls: certificates for DICOM connections.
        peers: who may send; none on the loopback: everybody on this machine.
        quiet: a series is whole when nothing has come for so long and its association is closed.
        rules: which series are taken.
        model: model files, or folders of exported models; probabilities of several are averaged. There is no
            default.
        runtime: what computes them; None for what they are made for.
        provider: of the runtime of exported models; None for what suits the device.
        allow_synthetic: whether to send what a model made that was trained on synthetic scans, or comes from one
            such and was not evaluated on patients.
        structures: of the model, which alone are written; None for all. Where none is of the organs' network, that
            one does not compute.
        devices: a worker for each, named once.
        destinations: where to send.
        limits: what the node may use.
        keep: scans, masks, corrections and the journal are deleted when they are so old.
        watch: a folder to look into.
        web: the web server; None for none.
        webhook: address that is told of cases that were refused, failed or set aside.
    """

    state: Path
    ae_title: AeTitle = "METRICUNET"
    port: Port | None = 11112
    bind: Address = ipaddress.ip_address("127.0.0.1")
    tls: Tls | None = None
    peers: tuple[Peer, ...] = ()
    quiet: Span = timedelta(seconds=10)
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]
    model: Annotated[tuple[Path, ...], BeforeValidator(_one_or_more), Field(min_length=1)]
    runtime: Runtime | None = None
    provider: Provider | None = None
    allow_synthetic: bool = False
    structures: Annotated[
        Annotated[tuple[str, ...], Field(min_length=1)] | None, BeforeValidator(_name_or_names)
    ] = None
    devices: Annotated[tuple[str, ...], BeforeValidator(_one_or_more), Field(min_length=1)] = ("cpu",)
    destinations: tuple[Destination, ...] = ()
    limits: Limits = Limits()
    keep: Span = timedelta(days=30)
    watch: Watch | None = None
    web: Web | None = None
    webhook: WebAddress | None = None

    def rule_for(self, found: Mapping[str, str]) -> tuple[Rule | None, str]:
        """Return the first rule that takes a series; or None, and why none does.

        Args:
            found: see `Rule.misfit`.
        """
        reasons = []
        for rule in self.rules:
            misfit = rule.misfit(found)
            if not misfit:
                return rule, ""
            reasons.append(f"{rule.name} does not take its {misfit}")
        return None, "; ".join(reasons)

    def rule_named(self, name: str) -> Rule | None:
        """Return the rule of a name; None where the file has it no longer."""
        return next((rule for rule in self.rules if rule.name == name), None)

    def destinations_of(self, rule: Rule) -> tuple[Destination, ...]:
        """Return where what a rule takes is sent."""
        if rule.destinations is None:
            return self.destinations
        return tuple(one for one in self.destinations if one.name in rule.destinations)

    def destination(self, name: str) -> Destination | None:
        """Return the destination of a name; None where the file has it no longer."""
        return next((one for one in self.destinations if one.name == name), None)

    @property
    def formats(self) -> tuple[str, ...]:
        """What is written of each case: a label map to review, and what any destination takes."""
        return ("nifti", *sorted({name for one in self.destinations for name in one.formats}))


def read_node(path: Path) -> NodeConfig:
    """Read the file of a node.

    Raises:
        InputError: a mistake in it, the first one, and how many more there are.
    """
    config, mistakes = examined(path)
    if config is None or mistakes:
        more = f" ({len(mistakes) - 1} more; to see all, have the file checked)" if len(mistakes) > 1 else ""
        raise InputError(f"{path}: {mistakes[0]}{more}")
    return config


def examined(path: Path) -> tuple[NodeConfig | None, list[str]]:
    """Return what the file of a node says, and every mistake in it, a line each.

    Paths in the file are relative to its folder.

    Raises:
        InputError: the file cannot be read, or is no table.
    """
    content = read_yaml(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected settings such as `state: /var/lib/metricunet`, found none")
    settings = {str(key): value for key, value in content.items()}
    mistakes: list[str] = []
    try:
        config: NodeConfig | None = NodeConfig.model_validate(settings)
    except ValidationError as error:
        config = None
        mistakes += [_explained(one) for one in error.errors()]
    # What is wrong in one place hides nothing that is wrong in another.
    sound, unknown = (config, frozenset[str]()) if config is not None else _sound_parts(settings)
    placed = _placed(sound, path.absolute().parent)
    mistakes += _mistakes(placed, unknown)
    return (placed if config is not None else None), list(dict.fromkeys(mistakes))


def _sound_parts(settings: Mapping[str, Any]) -> tuple[NodeConfig, frozenset[str]]:
    """Return the settings that are right by themselves, with stand-ins for the others; and the names of those.

    A setting that the file leaves out and need not have is as the file says: its default.
    """
    stand_in: dict[str, Any] = {"state": ".", "rules": [{"name": "any"}], "model": ["."]}
    sound = dict(stand_in)
    unknown = set(stand_in.keys() - settings.keys())
    for key, value in settings.items():
        try:
            NodeConfig.model_validate({**stand_in, key: value})
        except ValidationError:
            unknown.add(key)
            continue
        sound[key] = value
    return NodeConfig.model_validate(sound), frozenset(unknown)


def _placed(config: NodeConfig, folder: Path) -> NodeConfig:
    """Return the settings with absolute paths."""

    def place(value: Any) -> Any:
        if isinstance(value, Path):
            return folder / value.expanduser()
        if isinstance(value, tuple):
            return tuple(place(one) for one in value)
        if isinstance(value, BaseModel):
            return value.model_copy(
                update={
                    name: place(inner)
                    for name in type(value).model_fields
                    if (inner := getattr(value, name)) is not None
                }
            )
        return value

    placed: NodeConfig = place(config)
    return placed


def _explained(error: Any) -> str:
    # Names of alternatives that were tried, as pydantic puts them there, tell the user nothing.
    parts = [part for part in error["loc"] if isinstance(part, int) or str(part).isidentifier()]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
    if error["type"] == "extra_forbidden":
        section: Any = NodeConfig
        known = ", ".join(section.model_fields) if len(error["loc"]) == 1 else ""
        return f"{key} is unknown" + (
            f"; expected some of {known}" if known else "; see docs/node.md for what there is"
        )
    if error["type"] == "missing":
        return f"{key} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if isinstance(error["input"], dict):
        return f"{key}: {message}"
    return f"{key} is {repr(error['input'])[:80]}: {message}"


def _mistakes(config: NodeConfig, unknown: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong beyond single values. What a stand-in would cause is none of the file's mistakes.

    Args:
        config: settings with absolute paths.
        unknown: names of the settings that are stand-ins, for what the file says is wrong or missing.
    """

    def known(*names: str) -> bool:
        return unknown.isdisjoint(names)

    if known("state"):
        yield from _state_mistakes(config.state)
    if known("model"):
        yield from _model_mistakes(config, known)
    no_stow = config.web is None or not config.web.stow
    if known("watch", "web") and config.port is None and config.watch is None and no_stow:
        yield "port is null and there is neither watch nor web.stow, so nothing can come in"
    if not config.bind.is_loopback:
        if known("tls") and config.tls is None:
            yield f"bind is {config.bind}, beyond this machine, and there is no tls; an AE title is no credential"
        if known("peers") and not config.peers:
            yield f"bind is {config.bind}, beyond this machine, and peers is empty; list who may send"
    if config.tls is not None:
        yield from _tls_mistakes("tls", config.tls)
    yield from _doubles("peers", [one.ae_title for one in config.peers])
    yield from _doubles("rules", [one.name for one in config.rules])
    yield from _doubles("destinations", [one.name for one in config.destinations])
    for device in sorted({one for one in config.devices if config.devices.count(one) > 1}):
        yield f"devices has {device!r} more than once; one worker uses all of a device, so name each once"
    if known("destinations"):
        yield from _rule_mistakes(config)
    for k, one in enumerate(config.destinations):
        if one.tls and known("tls") and config.tls is None:
            yield f"destinations[{k}].tls is true, and there is no tls with the node's certificate"
        if one.commitment:
            yield from _commitment_mistakes(config, f"destinations[{k}].commitment", one)
        if one.token is not None:
            yield from _secret_mistakes(f"destinations[{k}].token", one.token)
    if config.keep < timedelta(hours=1):
        yield f"keep is {config.keep}; scans would be gone before anybody has seen them, expected 1 hour or more"
    if config.watch is not None:
        yield from _watch_mistakes(config.watch.folder, config.state if known("state") else None)
    if config.web is not None:
        yield from _web_mistakes(config.web, config.port if known("port") else None)


def _rule_mistakes(config: NodeConfig) -> Iterator[str]:
    names = {one.name for one in config.destinations}
    for k, rule in enumerate(config.rules):
        for name in sorted(set(rule.destinations or ()) - names):
            yield f"rules[{k}].destinations names {name!r}, which is none of the destinations"


def _commitment_mistakes(config: NodeConfig, key: str, one: Destination) -> Iterator[str]:
    if config.port is None:
        yield f"{key} is true and port is null, so the peer cannot call the node to say that it keeps something"
    if config.peers and one.ae_title not in [peer.ae_title for peer in config.peers]:
        yield (
            f"{key} is true and peers does not list {one.ae_title}, so the peer cannot call the node to say that "
            "it keeps something"
        )


def _state_mistakes(state: Path) -> Iterator[str]:
    if state.exists():
        if not state.is_dir():
            yield f"state {state} is a file; expected a folder"
        elif stat.S_IMODE(state.stat().st_mode) & 0o077:
            yield f"state {state} can be read by others; run chmod 700 {state}"
        elif not os.access(state, os.W_OK | os.X_OK):
            yield f"state {state} cannot be written by this user"
        return
    above = next(one for one in state.parents if one.exists())
    if not os.access(above, os.W_OK | os.X_OK):
        yield f"state {state} cannot be made in {above} by this user"


def _model_mistakes(config: NodeConfig, known: Callable[..., bool]) -> Iterator[str]:
    cards = []
    for path in config.model:
        try:
            cards.append(read_any_card(path))
        except (InputError, OSError) as error:
            yield f"model {error}"
    try:
        if known("runtime", "provider") and runtime_for(config.model, config.runtime, config.provider) == "onnx":
            for device in config.devices if known("devices") else ():
                provider_for(device, config.provider)
    except InputError as error:
        yield str(error)
    held = [str(path) for path, card in zip(config.model, cards, strict=False) if card.held_back]
    if held and config.destinations and known("allow_synthetic") and not config.allow_synthetic:
        yield (
            f"model {held[0]} was trained on synthetic scans or comes from one such, and nothing that it makes is "
            "sent; set allow_synthetic: true, or leave out destinations"
        )
    if cards and config.structures is not None:
        try:
            chosen_structures(config.structures, cards[0].labels, cards[0].tg263)
        except InputError as error:
            yield str(error)


def _tls_mistakes(key: str, tls: Tls) -> Iterator[str]:
    missing = [name for name in Tls.model_fields if not getattr(tls, name).is_file()]
    for name in missing:
        yield f"{key}.{name}: no such file {getattr(tls, name)}"
    if missing:
        return
    if stat.S_IMODE(tls.key.stat().st_mode) & 0o077:
        yield f"{key}.key {tls.key} can be read by others; run chmod 600 {tls.key}"
    try:
        tls.context(server=True)
    except OSError as error:
        yield f"{key}: its files are no certificate, key and authorities that fit ({error})"


def _secret_mistakes(key: str, path: Path) -> Iterator[str]:
    if not path.is_file():
        yield f"{key}: no such file {path}"
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield f"{key} {path} can be read by others; run chmod 600 {path}"


def _watch_mistakes(folder: Path, state: Path | None) -> Iterator[str]:
    if not folder.is_dir():
        yield f"watch.folder {folder} is no folder"
        return
    if state is not None:
        one, other = folder.resolve(), state.resolve()
        if one == other or one in other.parents or other in one.parents:
            yield f"watch.folder {folder} and state {state} lie within each other; choose two that do not"


def _web_mistakes(web: Web, dicom_port: int | None) -> Iterator[str]:
    if web.port == dicom_port:
        yield f"web.port is {web.port}, the port for DICOM; choose another"
    if not web.bind.is_loopback and web.proxy is None:
        yield (
            f"web.bind is {web.bind}, beyond this machine, and there is no web.proxy that encrypts and knows users"
        )
    if web.users and web.proxy is None:
        yield "web.users are those whom a proxy names, and there is no web.proxy"
    yield from _doubles("web.users", [user.name for user in web.users])


def _doubles(key: str, names: list[str]) -> Iterator[str]:
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{key} has {name!r} more than once"
