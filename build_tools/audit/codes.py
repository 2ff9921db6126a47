"""Every code of the audit: default severity, what it means, how to mend it.

``docs/auditing.md`` lists the same table; a test holds one against the other.
"""

from __future__ import annotations

# code -> (severity, meaning, mend)
CODES: dict[str, tuple[str, str, str]] = {
    # the zip file
    "zip-encrypted": (
        "error",
        "An entry is encrypted; no installer can read it.",
        "Pack the wheel without a password.",
    ),
    "zip-overlap": (
        "error",
        "Two entries share bytes, as in overlapping zip bombs; contents were not read.",
        "Pack the wheel anew with a zip library.",
    ),
    "zip-bomb": (
        "error",
        "Unpacked, the wheel would be implausibly large; contents were not read.",
        "Split the wheel or remove the filler.",
    ),
    "zip-corrupt": (
        "error",
        "An entry cannot be unpacked, or its two headers or its checksum disagree.",
        "Build or download the wheel again.",
    ),
    "zip-compression": (
        "error",
        "An entry is compressed by other means than deflate; installers may refuse it.",
        "Store entries, or compress them by deflate.",
    ),
    "zip-leading-data": (
        "warning",
        "Bytes come before the first entry.",
        "Remove them: a wheel is a plain zip file.",
    ),
    "zip-trailing-data": (
        "warning",
        "Bytes come after the end of the zip file.",
        "Remove them: they are in no entry and no RECORD vouches for them.",
    ),
    "zip-hidden-data": (
        "warning",
        "Bytes between the entries belong to none of them.",
        "Pack the wheel anew; no RECORD vouches for these bytes.",
    ),
    # names
    "name-unsafe": (
        "error",
        "An entry's name is absolute, climbs out by `..`, or holds backslashes or control bytes.",
        "Use relative names with forward slashes.",
    ),
    "name-duplicate": (
        "error",
        "Two entries have the same name; readers disagree which one counts.",
        "Pack each file once.",
    ),
    "name-collision": (
        "error",
        "Two names differ by case or Unicode form only; on macOS and Windows one file wins.",
        "Rename one of them.",
    ),
    "name-not-portable": (
        "note",
        "A name that Windows cannot hold (device names, reserved characters, trailing dots).",
        "Rename the file if the wheel is to be unpacked on Windows.",
    ),
    "entry-special": (
        "error",
        "An entry is a symbolic link, a device or another special file; wheels hold files only.",
        "Pack a copy of the file that the link points to.",
    ),
    # canonical form
    "not-canonical": (
        "note",
        "Entries are not sorted, or their times, modes or compression vary with the machine.",
        "Pass the wheel through `build_tools.wheel.canonical`, which fixes all of them.",
    ),
    # file name, WHEEL, METADATA
    "filename-invalid": (
        "error",
        "The file name is not a wheel's: name-version-python-abi-platform.whl.",
        "Give the file back the name that its build gave it.",
    ),
    "dist-info-count": (
        "error",
        "A wheel has exactly one .dist-info folder, at its root.",
        "Build the wheel anew; do not merge wheels by hand.",
    ),
    "dist-info-name": (
        "error",
        "The .dist-info folder names another project or version than the file name.",
        "Rename neither; build the wheel anew.",
    ),
    "wheel-file-missing": (
        "error",
        "The .dist-info folder has no WHEEL file.",
        "Build the wheel with a PEP 517 backend.",
    ),
    "wheel-file-invalid": (
        "error",
        "The WHEEL file lacks a field, repeats one, or has a version that installers refuse.",
        "Write Wheel-Version 1.0, Root-Is-Purelib and every Tag.",
    ),
    "wheel-tag-mismatch": (
        "error",
        "The tags in WHEEL are not those of the file name.",
        "Change both together, with `python -m wheel tags`.",
    ),
    "purelib-with-binaries": (
        "warning",
        "Root-Is-Purelib is true, but the wheel carries native libraries.",
        "Say Root-Is-Purelib: false; some systems keep the two apart.",
    ),
    "metadata-missing": (
        "error",
        "The .dist-info folder has no METADATA file.",
        "Build the wheel with a PEP 517 backend.",
    ),
    "metadata-invalid": (
        "error",
        "METADATA breaks the core metadata specification.",
        "Correct the field in pyproject.toml.",
    ),
    "metadata-early": (
        "note",
        "METADATA uses a field of a later metadata version than it states; installers ignore that.",
        "Build with a current backend.",
    ),
    "metadata-mismatch": (
        "error",
        "Name or version in METADATA are not those of the file name.",
        "Build the wheel anew; do not rename wheels.",
    ),
    "license-missing": (
        "warning",
        "Neither METADATA nor the .dist-info folder has the text of a licence.",
        "Set `license-files` in pyproject.toml.",
    ),
    "license-absent": (
        "error",
        "METADATA names a licence file that the wheel does not hold.",
        "Correct `license-files` in pyproject.toml.",
    ),
    "entry-point-invalid": (
        "error",
        "entry_points.txt cannot be read, or an entry is no `module:attribute`.",
        "Correct [project.scripts] or [project.entry-points].",
    ),
    "entry-point-missing": (
        "warning",
        "An entry point names a module of the wheel, or a name in it, that does not exist.",
        "Correct [project.scripts], or pack the module.",
    ),
    "sbom-missing": (
        "note",
        "A wheel with native libraries has no SBOM under .dist-info/sboms/ (PEP 770).",
        "Write one that names what the libraries are built from.",
    ),
    "sbom-invalid": (
        "error",
        "An SBOM is not valid JSON, or breaks the schema of its CycloneDX version.",
        "Write it with a CycloneDX library.",
    ),
    "sbom-disagrees": (
        "error",
        "The SBOM gives a hash that the file in the wheel does not have, or names a missing file.",
        "Write the SBOM after the last change to the files.",
    ),
    # RECORD
    "record-missing": (
        "error",
        "There is no RECORD, so nothing vouches for the contents.",
        "Build the wheel with a PEP 517 backend.",
    ),
    "record-invalid": (
        "error",
        "RECORD is no CSV of name, hash and size, or lists a file twice.",
        "Build the wheel anew.",
    ),
    "record-unlisted": (
        "error",
        "The wheel holds a file that RECORD does not list.",
        "Add files before RECORD is written.",
    ),
    "record-absent": (
        "error",
        "RECORD lists a file that the wheel does not hold.",
        "Remove files before RECORD is written.",
    ),
    "record-hash": (
        "error",
        "A file has other contents, or another size, than RECORD says.",
        "Write RECORD after the last change; or discard the wheel, it was tampered with.",
    ),
    "record-weak": (
        "error",
        "RECORD gives no hash, or one weaker than SHA-256.",
        "Use SHA-256 or better.",
    ),
    # tags against contents
    "binary-in-any": (
        "warning",
        "A wheel for any platform carries native libraries.",
        "Tag the wheel with the platform of its libraries.",
    ),
    "platform-without-binaries": (
        "note",
        "A wheel for one platform carries nothing native.",
        "Tag it `any` if it runs everywhere.",
    ),
    "binary-malformed": (
        "error",
        "A native file contradicts itself: it is cut, or its sizes or offsets lie.",
        "Build the library again; check what post-processed it.",
    ),
    "wrong-platform": (
        "error",
        "A native file is for another operating system, C library or architecture than the tag.",
        "Build for the tag's platform, or correct the tag.",
    ),
    "architecture-missing": (
        "error",
        "The tag promises an architecture that a library does not have.",
        "Build a universal library, or narrow the tag.",
    ),
    "minimum-os": (
        "error",
        "A library needs a newer macOS than the tag admits.",
        "Build with the tag's MACOSX_DEPLOYMENT_TARGET, or raise the tag.",
    ),
    "symbol-version": (
        "error",
        "A library needs newer symbols (GLIBC, GLIBCXX, ...) than the manylinux tag admits.",
        "Build in an older image, or take the tag that `auditwheel show` names.",
    ),
    # how libraries find each other
    "dependency-outside": (
        "error",
        "A dependency has an absolute path that is not the system's, or climbs out of the wheel.",
        "Embed the library and refer to it by @loader_path or $ORIGIN.",
    ),
    "dependency-missing": (
        "error",
        "A dependency is neither in the wheel nor part of the system that the tag names.",
        "Embed it (delocate, auditwheel repair), or link it statically.",
    ),
    "dependency-elsewhere": (
        "note",
        "A dependency must come from another distribution, installed in the right place.",
        "Make sure that Requires-Dist pins the distribution that brings it.",
    ),
    "needs-environment": (
        "warning",
        "A library finds a dependency only through LD_LIBRARY_PATH, DYLD_* or one loaded before.",
        "Give it an rpath relative to its own folder.",
    ),
    "rpath-outside": (
        "warning",
        "An rpath is absolute and not the system's, or climbs out of the wheel.",
        "Remove it: on another machine, another user's file may be found there.",
    ),
    "install-name": (
        "note",
        "The library's own name is a path of the machine that built it.",
        "Set it to @rpath/NAME or @loader_path/NAME; on Linux, to a plain name.",
    ),
    "build-path": (
        "note",
        "Paths of the machine that built the wheel stand in the file.",
        "Map prefixes (-ffile-prefix-map), strip debug information, correct the metadata.",
    ),
    # trust and hardening
    "signature-missing": (
        "error",
        "An arm64 library has no code signature; macOS kills the process that loads it.",
        "Sign it ad hoc: `codesign --force --sign -`.",
    ),
    "signature-invalid": (
        "error",
        "The code signature does not fit the file; macOS kills the process that loads it.",
        "Sign again after the last change to the file.",
    ),
    "executable-stack": (
        "error",
        "Loading the library makes the stack executable; hardened systems refuse it.",
        "Link with -z noexecstack; mark assembly with .note.GNU-stack.",
    ),
    "writable-executable": (
        "error",
        "A segment is writable and executable at once.",
        "Separate code and data; check the linker script.",
    ),
    "text-relocations": (
        "warning",
        "The loader must write into code.",
        "Compile everything with -fPIC.",
    ),
    "no-relro": (
        "note",
        "Relocated data stays writable.",
        "Link with -z relro.",
    ),
    "lazy-binding": (
        "note",
        "Functions are bound late, so that part of the relocated data stays writable.",
        "Link with -z now.",
    ),
    "debug-information": (
        "note",
        "The library carries debugging information.",
        "Split it off: objcopy --only-keep-debug, strip.",
    ),
    "shader-pack": (
        "error",
        "A shader pack's index is malformed, or does not fit the files beside it.",
        "Make the pack again: python -m build_tools shaders pack.",
    ),
    # what a policy may demand
    "abi-missing": (
        "error",
        "The library does not export a function of the ABI that the policy names.",
        "Export it, or correct the declarations.",
    ),
    "abi-extra": (
        "warning",
        "The library exports more than the ABI that the policy names.",
        "Limit exports: -fvisibility=hidden and a version script.",
    ),
    "file-required": (
        "error",
        "A file that the policy demands is not in the wheel.",
        "Pack it.",
    ),
}
