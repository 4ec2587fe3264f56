"""What README promises of a first run's start, and of a log type that is added later."""

from conftest import SCRIPT


def test_the_first_run_goes_back_up_to_180_days_by_the_accounts_retention():
    """Accounts may keep their logs for less: log_retention_days."""
    text = SCRIPT.with_name("README.md").read_text()
    (line,) = [line for line in text.splitlines() if "up to 180 days" in line]
    assert "retention" in line


def test_the_readme_says_how_activity_is_added():
    text = SCRIPT.with_name("README.md").read_text()
    (line,) = [line for line in text.splitlines() if "--log-types activity" in line]
    assert "--once --since 24h" in line
