"""`maep convert`: convert autoencoders from and to Hugging Face's ViTMAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maep.errors import ConfigError
from maep_jobs.arguments import Parser, local_folder, print_result

_EXAMPLES = """  maep convert downloads/vit-mae-base -o outputs/vit-mae-base
  maep convert outputs/mae/model -o exports/vit-mae --json"""


def parser() -> Parser:
    """The verb's options."""
    summary = "Convert a folder of Hugging Face's ViTMAE to an autoencoder artifact, or an artifact to such a folder."
    made = Parser("convert", summary, _EXAMPLES)
    made.add_argument("source", metavar="FROM", help="folder of a ViTMAEForPreTraining, or URI of an autoencoder")
    made.add_argument("-o", "--output", type=local_folder, required=True, metavar="TO", help="folder to write")
    made.add_json()
    return made


def main(argv: Sequence[str]) -> int:
    """Runs the verb."""
    options = parser().parse_args(list(argv))
    output: Path = options.output
    if output.resolve() == Path(options.source).resolve():
        raise ConfigError(f"-o {output}: is the folder to convert: name another one")
    from maep.models.vitmae.folder import export_vitmae, import_vitmae, is_vitmae
    from maep.tracking.resolve import resolve

    if is_vitmae(options.source):
        result = import_vitmae(options.source, output)
        found = {"model": str(result.folder), "kind": result.kind, "sha256": result.sha256}
        text = f"convert: {result.folder}  {result.kind}, sha256 {result.sha256[:12]}"
    else:
        folder = export_vitmae(resolve(options.source), output)
        found = {"model": str(folder), "kind": "vit_mae"}
        text = f"convert: {folder}  vit_mae, for ViTMAEForPreTraining.from_pretrained"
    print_result(options, found, text)
    return 0
