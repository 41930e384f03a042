#!/usr/bin/env bash
# Builds docs/ into site/. A warning (a link or an anchor that leads nowhere, a page that is not in
# the menu, a name that the API reference does not find) is an error.
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
use_venv

# The theme's announcement of what will happen to MkDocs is no warning about these pages.
export NO_MKDOCS_2_WARNING=1
# Not --quiet: that drops warnings before --strict counts them.
mkdocs build --strict "$@"
say "the site is in ${PWD}/site: open site/index.html"
