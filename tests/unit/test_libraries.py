# SPDX-License-Identifier: Apache-2.0
"""
Versions of libraries by the directories of a code path.
"""

from __future__ import annotations

import pytest

from scope_ebpf.beam.code.libraries import versions

WANTED = {"phoenix", "rabbit", "my_app"}


@pytest.mark.parametrize(
    ("directories", "found"),
    [
        (["/srv/shop/lib/phoenix-1.7.21/ebin"], {"phoenix": "1.7.21"}),
        (["/srv/shop/lib/phoenix-1.8.0-rc.4/ebin/"], {"phoenix": "1.8.0-rc.4"}),
        (["phoenix-1.7.21/ebin", "/lib/phoenix_html-4.2.1/ebin"], {"phoenix": "1.7.21"}),
        (["/plugins/rabbit-3.10.8.ez/rabbit-3.10.8/ebin"], {"rabbit": "3.10.8"}),
        (["/shop/_build/dev/lib/phoenix/ebin"], {"phoenix": None}),
        (["/a/phoenix-1.7.21/ebin", "/b/phoenix-1.7.20/ebin"], {"phoenix": "1.7.21"}),
        (["/a/phoenix/ebin", "/b/phoenix-1.7.21/ebin"], {"phoenix": None}),
        (["/a/phoenix-\x1b[2J/ebin", "/a/phoenix-1." + "9" * 50 + "/ebin", "", "/ebin"], {}),
    ],
)
def test_a_version_is_that_of_the_first_directory_of_an_application(directories, found):
    """
    The first directory counts, also if it has no version; what cannot be a version is none.
    """
    assert found == versions(directories, WANTED)
