"""References in docstrings: what stands in single backticks there links to its place in the API reference.

Docstrings name things as code does that has imported them: `Normalizer.load`, `threshold.adaptive`, `cdf.update`. Each
package has its own things of these names, and what it does not have is core's.
"""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.nodes import make_refnode

PACKAGES = ("anomnorm_core", "anomnorm_torch", "anomnorm_jax")


def resolve(app: Sphinx, env: BuildEnvironment, node: Any, content: nodes.TextElement) -> nodes.reference | None:
    """A link to what a name means where it stands, or None."""
    if node.get("refdomain") != "py":
        return None
    target, module = node["reftarget"], node.get("py:module") or ""
    first, _, rest = target.partition(".")
    package, name = (first, rest) if first in PACKAGES else (module.partition(".")[0], target)
    objects = env.domains.python_domain.objects
    places = [place for place in objects if place.endswith(f".{name}")]
    near_to_far = [
        [place for place in places if place == f"{module}.{name}"],
        [place for place in places if place == f"{package}.{name}"],
        [place for place in places if place.startswith(f"{package}.")],
        [place for place in places if place.startswith("anomnorm_core.")],
    ]
    # One thing may be known by several names, but what is nearest has to be one thing.
    found = {(objects[place].docname, objects[place].node_id) for place in next(filter(None, near_to_far), [])}
    if len(found) != 1:
        return None
    return make_refnode(app.builder, node["refdoc"], *found.pop(), content, target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
