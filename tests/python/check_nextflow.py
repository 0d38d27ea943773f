#!/usr/bin/env python3
"""Reads every Nextflow script and configuration under a folder with a parser of the language, and says what it found.

usage: check_nextflow.py FOLDER

Nothing is run. What the parser refuses is an error, and so is a script that includes a process that is not there. So that a parser which
refuses nothing would be noticed, it must refuse a script whose last brace is cut off.
"""

import pathlib
import sys
import tempfile

from reftrace import ConfigFile, Module, ParseError


def read(script):
    """A script, parsed."""
    module = Module.from_file(str(script))
    if isinstance(module, ParseError):
        sys.exit(f"{script}: {module.error}")
    return module


def main():
    folder = pathlib.Path(sys.argv[1])
    scripts = {script.resolve(): read(script) for script in sorted(folder.rglob("*.nf"))}
    for script, module in scripts.items():
        for process in module.processes:
            print(f"{script.relative_to(folder.resolve())}: process {process.name}, line {process.line}")
        for include in module.includes:
            included = scripts[(script.parent / include.from_module).resolve()]
            missing = {item.name for item in include.items} - {process.name for process in included.processes}
            if missing:
                sys.exit(f"{script}: {include.from_module} has no {', '.join(missing)}")
            print(f"{script.relative_to(folder.resolve())}: includes {', '.join(i.name for i in include.items)}")
        with tempfile.TemporaryDirectory() as place:
            broken = pathlib.Path(place) / "broken.nf"
            broken.write_text(script.read_text().rstrip().removesuffix("}"))
            if not isinstance(Module.from_file(str(broken)), ParseError):
                sys.exit(f"{script}: the parser does not notice that a brace is missing")
    for configuration in sorted(folder.rglob("*.config")):
        result = ConfigFile.from_file(str(configuration))
        if result.error:
            sys.exit(f"{configuration}: {result.error}")
        print(f"{configuration.relative_to(folder)}: read")
    if not any(module.processes for module in scripts.values()):
        sys.exit("no process was found")


if __name__ == "__main__":
    main()
