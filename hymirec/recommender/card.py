"""The model card that lies beside the weights."""

from __future__ import annotations

from hymirec.recommender.hybrid import HybridModel


def model_card(model: HybridModel, items: int, users: int) -> str:
    """Markdown; a function of the configuration and the data's size only, so that equal runs write equal bytes."""
    s = model.settings
    sources = [name for name, used in (("text", s.item.text), ("learned residual", s.item.ids)) if used]
    light = f"{s.light.queries} coarse interests from up to {s.light.max_history:,} coded events"
    return (
        "# Hybrid recommender\n\n"
        f"LLM preset `{s.llm.preset}` ({model.llm.config.model_type}, width {model.llm.config.hidden_size}, "
        f"{model.llm.config.num_hidden_layers} layers) over the last {s.llm.recent} items; "
        f"{light if s.light.enabled else 'no light recommender'}; {s.dmil.interests} interests of width "
        f"{s.item.width}.\n\nItem vectors: {' + '.join(sources)}"
        f"{', started from co-occurrence' if s.item.cooccurrence else ''}.\n\n"
        f"Trained on the training events of {users:,} users and {items:,} items: next item after every prefix, the "
        f"next item by the best interest, and DMIL (window {s.dmil.window}, decay {s.dmil.decay:g}, matching "
        f"`{s.dmil.matching}`) at {s.dmil.anchors} anchors a sequence.\n\n"
        "An item's score is its largest cosine over the interests, what is popular now (`trend.json`), and what stood "
        "beside the history's last items (`neighbours.json`).\n\n"
        "    from hymirec.recommender import HybridModel\n"
        '    model = HybridModel.open(DIRECTORY, ItemCodes.open(RUN / "codes"))\n'
    )
