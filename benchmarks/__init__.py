"""How fast fastrnn is: beside its peers (`compare`), inside other frameworks, and from commit to commit."""
