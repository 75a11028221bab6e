"""Why an endpoint does not answer, and what to do: libraries of TLS and gRPC say it in their own words, or `OK`."""

from __future__ import annotations

TRUST = "its certificate is not trusted; name the CA that signed it with --tls-ca"
PLAIN = "it does not speak TLS; use {plain}://, or the port of a server with TLS"
NAMES = "its certificate is for another name; use a name or address that stands in it"
CUT = {
    "grpc": "it hung up; if it stays so, it speaks TLS (use grpcs://) or is no port of gRPC (usually 8001)",
    "grpcs": "it hung up; if it stays so, it asks for a client's certificate: give --tls-cert and --tls-key, made by "
    "a CA that it trusts",
}
"""By scheme: a server that is ending hangs up, too."""


def why_unreachable(scheme: str, said: str) -> str:
    """Return why connecting failed, for people.

    scheme : of the endpoint. said : by the client's library, from the outer reason to the inner, with colons between.
    """
    if "CERTIFICATE_VERIFY_FAILED" in said:
        mismatch = "hostname mismatch" in said.lower() or "ip address mismatch" in said.lower()
        return NAMES if mismatch else TRUST
    if "hostname verification" in said.lower():
        return NAMES
    if "WRONG_VERSION_NUMBER" in said:
        return PLAIN.format(plain=scheme.removesuffix("s"))
    if "Failed parsing HTTP/2" in said:
        return "it speaks no gRPC; gRPC has a port of its own, usually 8001"
    if said.endswith("Socket closed") and scheme in CUT:
        return CUT[scheme]
    if "andshake failed" in said:
        return f"TLS failed: {said.removesuffix(': OK').rpartition('OPENSSL_internal:')[2]}"
    return said.rpartition(": ")[2]


def advised(text: str) -> str:
    """Return what a server says of a model that is not there, or not of the kind that is asked, with what to do."""
    if "unknown model" in text:
        return f"{text}; name one that is served with --model (a single ensemble is served as gfm)"
    if "unexpected inference output 'description'" in text:
        return (
            f"{text}; it takes ready graphs, or is none of ours, and cannot be asked or checked so: name the model "
            "that takes structures with --model, usually gfm"
        )
    return text
