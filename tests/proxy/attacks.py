"""Attacks, byte for byte: requests that two programs may read in two ways, and what is no HTTP at all."""

from __future__ import annotations

import random

PING = "GET /ping HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
SMUGGLED = "GET /studies?smuggled=1 HTTP/1.1\r\nHost: a\r\n\r\n"
"""Stands where it is a body to one reader, and a request to another."""
GET = "GET /studies HTTP/1.1\r\nHost: a\r\n"
POST = "POST /studies HTTP/1.1\r\nHost: a\r\nContent-Type: application/dicom\r\n"
CHUNKED = f"{POST}Transfer-Encoding: chunked\r\n\r\n"
LENGTH = str(len(SMUGGLED))
END = "0\r\n\r\n"

LENGTHS = {
    "length and chunked": f"{POST}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{END}{SMUGGLED}",
    "chunked and length": f"{POST}Transfer-Encoding: chunked\r\nContent-Length: {LENGTH}\r\n\r\n{END}{SMUGGLED}",
    "two lengths": f"{POST}Content-Length: 0\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "two equal lengths": f"{POST}Content-Length: {LENGTH}\r\nContent-Length: {LENGTH}\r\n\r\n{SMUGGLED}",
    "list of lengths": f"{POST}Content-Length: 0, {LENGTH}\r\n\r\n{SMUGGLED}",
    "list of equal lengths": f"{POST}Content-Length: {LENGTH}, {LENGTH}\r\n\r\n{SMUGGLED}",
    **{
        f"length {value!r}": f"{POST}Content-Length: {value}\r\n\r\n{SMUGGLED}"
        for value in (
            f"+{LENGTH}",
            f"-{LENGTH}",
            "-0",
            f"{LENGTH} 0",
            f"0 {LENGTH}",
            f"0x{int(LENGTH):x}",
            f"{LENGTH[0]}_{LENGTH[1]}",
            f"{LENGTH}.0",
            f"{LENGTH};a",
            f'"{LENGTH}"',
            "",
            "a",
            "9" * 30,
            "\x0b0",
            "0\x0c",
            "0\0",
            "\xb2",
        )
    },
    "space before colon of length": f"{POST}Content-Length : {LENGTH}\r\n\r\n{SMUGGLED}",
    "space before colon of coding": f"{POST}Transfer-Encoding : chunked\r\n\r\n{END}{SMUGGLED}",
    "tab before colon": f"{POST}Transfer-Encoding\t: chunked\r\n\r\n{END}{SMUGGLED}",
    **{
        f"coding {value!r}": f"{POST}Transfer-Encoding: {value}\r\n\r\n{END}{SMUGGLED}"
        for value in (
            "xchunked",
            "chunked, identity",
            "identity, chunked",
            "identity",
            "gzip",
            "gzip, chunked",
            "chunked, chunked",
            ", chunked",
            "chunked,",
            '"chunked"',
            "chunked;a=b",
            "\x0bchunked",
            "chunked\x0c",
            "chunked\0",
            "",
            "cow",
            "\r\n chunked",
            "chun\r\n ked",
        )
    },
    "two codings": f"{POST}Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n{END}{SMUGGLED}",
    "two equal codings": f"{POST}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n{END}{SMUGGLED}",
    "coding in HTTP/1.0": CHUNKED.replace("1.1", "1.0") + END + SMUGGLED,
    "coding and length in HTTP/1.0": (
        f"{POST.replace('1.1', '1.0')}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n{END}{SMUGGLED}"
    ),
}
"""Of whose body the length is in doubt (RFC 9112 6.1 and 6.3)."""

CHUNKS = {
    repr(size)[:20]: f"{CHUNKED}{size}\r\n\r\n{SMUGGLED}"
    for size in (
        "-1",
        "+0",
        "0x0",
        "0_0",
        " 0",
        "0 ",
        "\t0",
        "0\t",
        "",
        "g",
        "0\0",
        "0 0",
        "0,0",
        ".0",
        "f" * 17,
        "\xb2",
    )
} | {
    "line feed": f"{CHUNKED}0\n\n{SMUGGLED}",
    "line feed and carriage return": f"{CHUNKED}0\n\r\n{SMUGGLED}",
    "two carriage returns": f"{CHUNKED}0\r\r\n\r\n{SMUGGLED}",
    "line feed in an extension": f"{CHUNKED}0;a\nb\r\n\r\n{SMUGGLED}",
    "carriage return in an extension": f"{CHUNKED}0;a\rb\r\n\r\n{SMUGGLED}",
    "data longer than its size": f"{CHUNKED}1\r\nabc\r\n{END}{SMUGGLED}",
    "data that ends by a line feed": f"{CHUNKED}1\r\na\n{END}{SMUGGLED}",
    "data shorter than its size": f"{CHUNKED}3\r\na\r\n{END}{SMUGGLED}",
    "length in a trailer that is folded": f"{CHUNKED}0\r\nA: b\r\n c\r\n\r\n{SMUGGLED}",
}
"""Chunks that are none (RFC 9112 7.1)."""

HEADS = {
    "bare line feeds": f"{GET}\r\n".replace("\r\n", "\n"),
    "a bare line feed": f"{GET}X: y\nZ: z\r\n\r\n",
    "a bare line feed at the end": f"{GET}\n",
    "a bare carriage return": f"{GET}X: a\rZ: z\r\n\r\n",
    "a carriage return within a name": f"{GET}X\rY: a\r\n\r\n",
    "a folded field": f"{GET}X: a\r\n b\r\n\r\n",
    "a field folded by a tab": f"{GET}X: a\r\n\tb\r\n\r\n",
    "a space before the first field": "GET /studies HTTP/1.1\r\n Host: a\r\n\r\n",
    "a space before a colon": f"{GET}X : a\r\n\r\n",
    "no colon": f"{GET}X\r\n\r\n",
    "no name": f"{GET}: a\r\n\r\n",
    "NUL in a value": f"{GET}X: a\0b\r\n\r\n",
    "NUL in a name": f"{GET}X\0: a\r\n\r\n",
    "a control character in a value": f"{GET}X: a\x08\r\n\r\n",
    "a byte beyond ASCII in a name": f"{GET}X\xe4: a\r\n\r\n",
    "brackets in a name": f"{GET}X(Y): a\r\n\r\n",
    "two hosts": f"{GET}Host: b\r\n\r\n",
    "two equal hosts": f"{GET}Host: a\r\n\r\n",
    "no host": "GET /studies HTTP/1.1\r\n\r\n",
    "a lower-case version": "GET /studies http/1.1\r\nHost: a\r\n\r\n",
    "no version": "GET /studies\r\nHost: a\r\n\r\n",
    "HTTP/0.9": "GET /studies\r\n",
    "HTTP/0.9 by name": "GET /studies HTTP/0.9\r\nHost: a\r\n\r\n",
    "HTTP/1.2": "GET /studies HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/1.10": "GET /studies HTTP/1.10\r\nHost: a\r\n\r\n",
    "HTTP/2.0": "GET /studies HTTP/2.0\r\nHost: a\r\n\r\n",
    "a space behind the version": "GET /studies HTTP/1.1 \r\nHost: a\r\n\r\n",
    "tabs in the request line": "GET\t/studies\tHTTP/1.1\r\nHost: a\r\n\r\n",
    "a space in the target": "GET /studies?a= b HTTP/1.1\r\nHost: a\r\n\r\n",
    "NUL in the target": "GET /stud\0ies HTTP/1.1\r\nHost: a\r\n\r\n",
    "a lower-case method": "get /studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "an invented method": "SMUGGLE /studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "a tunnel": "CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "a tunnel to a path": "CONNECT /studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "another host's resource": "GET http://evil.example/studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "another port's resource": "GET http://a:81/studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "a user's resource": "GET http://user@a/studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "another protocol's resource": "GET ftp://a/studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "a file": "GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
    "a target without slash": "GET studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "an at sign for a slash": "GET @evil.example/studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "backslashes": "GET \\\\evil.example\\studies HTTP/1.1\r\nHost: a\r\n\r\n",
    "a star": "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
}
"""Heads that RFC 9112 2.2 to 5.2 do not allow, or that this server has no reason to allow."""

NO_HTTP = {
    "TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2,
    "SSL 2 hello": b"\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10" + bytes(40),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x12\x04\x00\x00\x00\x00\x00",
    "DICOM": b"\x01\x00\x00\x00\x00\xcd\x00\x01\x00\x00ANY-SCP         STORESCU        " + bytes(32),
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "SMTP": b"EHLO evil.example\r\n",
    "SOCKS": b"\x05\x01\x00",
    "PROXY protocol": b"PROXY TCP4 127.0.0.1 127.0.0.1 1 2\r\n" + PING.encode(),
    "PROXY protocol 2": b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12) + PING.encode(),
    "NULs": bytes(1000),
    "a byte order mark": b"\xef\xbb\xbf" + PING.encode(),
    "UTF-16": PING.encode("utf-16"),
    **{f"random bytes {seed}": random.Random(seed).randbytes(500) for seed in range(20)},
}

ODD = {
    "empty lines before": (f"\r\n\r\n{GET}\r\n", b""),
    "tab for space": (f"{POST}Content-Length:\t{LENGTH}\r\n\r\n{SMUGGLED}", SMUGGLED.encode()),
    "spaces around": (f"{POST}Content-Length:   {LENGTH}  \r\n\r\n{SMUGGLED}", SMUGGLED.encode()),
    "zeros": (f"{POST}Content-Length: 00{LENGTH}\r\n\r\n{SMUGGLED}", SMUGGLED.encode()),
    "a body with GET": (f"{GET}Content-Length: {LENGTH}\r\n\r\n{SMUGGLED}", SMUGGLED.encode()),
    "case of a coding": (f"{POST}transfer-ENCODING: ChUnKeD\r\n\r\n{END}", b""),
    "chunks": (f"{CHUNKED}{int(LENGTH):X}\r\n{SMUGGLED}\r\n{END}", SMUGGLED.encode()),
    "chunk extensions": (f'{CHUNKED}00{int(LENGTH):x};a="b\\"c";d\r\n{SMUGGLED}\r\n0;e\r\n\r\n', SMUGGLED.encode()),
    "another header with an underscore": (f"{POST}Content_Length: 5\r\nContent-Length: 0\r\n\r\n", b""),
}
"""What looks odd and is allowed: the request, and its body."""

LINE_BREAKS = ("%0d%0aX-Evil:%20yes", "%0aX-Evil:%20yes", "%0dX-Evil:%20yes", "%E5%98%8D%E5%98%8AX-Evil:%20yes", "%00")
"""Line breaks of HTTP, and characters that some programs make such of, as they stand in a URL."""

CLIMBING = (
    "..",
    "%2e%2e",
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "../../../../etc/passwd",
    "..%5c..%5cetc",
    "..\\..\\etc",
    "%252e%252e%252fetc",
    "%c0%ae%c0%ae%c0%af",
    "%00",
    "1.2%00.dcm",
    "1.2/..",
    "%2fetc%2fpasswd",
    "/etc/passwd",
    "1" * 65,
    "1." * 200 + "1",
    "1.2%0a",
    "~root",
    "$(id)",
    "`id`",
    ";id",
    "|id",
    "file:%2f%2f%2fetc%2fpasswd",
    "C:%5cwindows",
    "CON",
    "%ff%fe",
)
"""In the place of a UID: what would lead elsewhere, or mean something to a shell or a file system."""
