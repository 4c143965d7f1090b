//! The store's tables as numbered statements, embedded when the collector is built: `migrations/sqlite/` and
//! `migrations/postgres/`. A file is `NUMBER_what_it_does.sql`; a number that has been released is never changed.

use anyhow::Context;
use rust_embed::RustEmbed;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{AssertSqlSafe, SqlSafeStr};

/// The migrations of a store in SQLite.
#[derive(RustEmbed)]
#[folder = "migrations/sqlite/"]
pub(super) struct SqliteMigrations;

/// The migrations of a store in Postgres.
#[derive(RustEmbed)]
#[folder = "migrations/postgres/"]
pub(super) struct PostgresMigrations;

/// All migrations of a folder, in the order of their numbers.
///
/// # Errors
/// When a file's name has no number, or its text is not UTF-8: a mistake in the source.
pub(super) fn migrator<Files: RustEmbed>() -> anyhow::Result<Migrator> {
    let migrations = Files::iter().map(|name| {
        let file = Files::get(&name).with_context(|| format!("the migration {name} is not embedded"))?;
        let stem = name.strip_suffix(".sql").with_context(|| format!("the migration {name} is no .sql file"))?;
        let (number, description) =
            stem.split_once('_').with_context(|| format!("the migration {name} has no number"))?;
        let number = number.parse().with_context(|| format!("the migration {name} has no number"))?;
        let sql = std::str::from_utf8(&file.data).with_context(|| format!("the migration {name} is not UTF-8"))?;
        let sql = AssertSqlSafe(sql.to_owned()).into_sql_str();
        Ok(Migration::new(number, description.replace('_', " ").into(), MigrationType::Simple, sql, false))
    });
    Ok(Migrator::with_migrations(migrations.collect::<anyhow::Result<_>>()?))
}
