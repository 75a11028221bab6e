"""Reasons why an endpoint does not answer, with a remedy; the messages of TLS and gRPC libraries are hard to read."""

from __future__ import annotations

TRUST = "its certificate is not trusted; name the CA that signed it with --tls-ca"
PLAIN = "it does not speak TLS; use {plain}://, or the port of a server with TLS"
NAMES = "its certificate is for another name; use a name or address that stands in it"
HUNG_UP = {
    "grpc": "it hung up; if it stays so, it speaks TLS (use grpcs://) or is no port of gRPC (usually 8001)",
    "grpcs": "it hung up; if it stays so, it asks for a client's certificate: give --tls-cert and --tls-key, made by "
    "a CA that it trusts",
}
"""By scheme; a server that is ending hangs up, too."""


def explain_unreachable(scheme: str, text: str) -> str:
    """Return a readable reason why connecting failed.

    scheme : of the endpoint. text : message of the client's library, from the outer reason to the inner, with colons
    between.
    """
    if "CERTIFICATE_VERIFY_FAILED" in text:
        mismatch = "hostname mismatch" in text.lower() or "ip address mismatch" in text.lower()
        return NAMES if mismatch else TRUST
    if "hostname verification" in text.lower():
        return NAMES
    if "WRONG_VERSION_NUMBER" in text:
        return PLAIN.format(plain=scheme.removesuffix("s"))
    if "Failed parsing HTTP/2" in text:
        return "it speaks no gRPC; gRPC has a port of its own, usually 8001"
    if text.endswith("Socket closed") and scheme in HUNG_UP:
        return HUNG_UP[scheme]
    if "andshake failed" in text:
        return f"TLS failed: {text.removesuffix(': OK').rpartition('OPENSSL_internal:')[2]}"
    return text.rpartition(": ")[2]


def add_advice(text: str) -> str:
    """Return an error text of a server; about a missing or unsuitable model, with advice."""
    if "unknown model" in text:
        return f"{text}; name one that is served with --model (a single ensemble is served as gfm)"
    if "unexpected inference output 'description'" in text:
        return (
            f"{text}; it takes ready graphs, or is none of ours, and cannot be asked or checked so: name the model "
            "that takes structures with --model, usually gfm"
        )
    return text
