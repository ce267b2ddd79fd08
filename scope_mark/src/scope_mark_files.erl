%% SPDX-License-Identifier: Apache-2.0
%% Trees of .beam files: found, read in processes of their own, replaced whole or not at all.
-module(scope_mark_files).
-export([find/1, behaviours/1, each/2, mark/3, unmark/2, info/1]).
-export([worker/2]).
-export_type([outcome/0]).

-include_lib("kernel/include/file.hrl").

-type outcome() :: #{
    path := file:filename_all(),
    status := marked | unmarked | unchanged | skipped | failed,
    reason => scope_mark:reason(),
    info => scope_mark:info()
}.

-define(MAX_DEPTH, 64).
-define(MAX_FILE, 128 * 1024 * 1024).
%% Names below one folder, and bytes of the .beam files among them.
-define(MAX_NAMES, 1000000).
-define(MAX_BYTES, 8 * 1024 * 1024 * 1024).
-define(MAX_HEAP_WORDS, 256 * 1024 * 1024).
-define(TIMEOUT, 300000).

%% The .beam files under a folder, or the file itself; symbolic links below it are not followed.
-spec find(file:filename_all()) -> {ok, [file:filename_all()]} | {error, scope_mark:reason()}.
find(Path) ->
    case file:read_link_info(Path) of
        {ok, #file_info{type = regular}} -> {ok, [Path]};
        {ok, #file_info{type = directory}} -> walked(Path);
        {ok, #file_info{type = symlink}} ->
            case filelib:is_dir(Path) of
                true -> walked(Path);
                false -> {error, symbolic_link}
            end;
        {ok, _} -> {error, no_regular_file};
        {error, Reason} -> {error, {file, Reason}}
    end.

walked(Path) ->
    try
        ok = trusted(read, Path),
        {_, _, Files} = folder(Path, named(Path), 1, {0, 0, []}),
        {ok, lists:reverse(Files)}
    catch
        throw:Reason -> {error, Reason}
    end.

named(Path) ->
    case file:list_dir_all(Path) of
        {ok, Names} -> lists:sort(Names);
        {error, Reason} -> throw({file, Reason})
    end.

%% The .beam files below a folder with these names, the last first, behind the number of names and bytes until now.
folder(Path, Names, Depth, Found) ->
    lists:foldl(fun(Name, Acc) -> below(filename:join(Path, Name), Depth, Acc) end, Found, Names).

below(_, _, {?MAX_NAMES, _, _}) -> throw({too_much, names});
below(_, Depth, Found) when Depth > ?MAX_DEPTH -> Found;
below(Path, Depth, {Names, Bytes, Files}) ->
    Found = {Names + 1, Bytes, Files},
    case file:read_link_info(Path) of
        {ok, #file_info{type = directory}} ->
            ok = trusted(read, Path),
            case file:list_dir_all(Path) of
                {ok, More} -> folder(Path, lists:sort(More), Depth + 1, Found);
                {error, _} -> Found
            end;
        {ok, #file_info{type = regular, size = Size}} ->
            case is_beam(Path) of
                true when Bytes + Size > ?MAX_BYTES -> throw({too_much, bytes});
                true -> {Names + 1, Bytes + Size, [Path | Files]};
                false -> Found
            end;
        _ -> Found
    end.

trusted(Purpose, Folder) ->
    case scope_mark_trust:check(Purpose, Folder) of
        ok -> ok;
        {error, Reason} -> throw(Reason)
    end.

is_beam(Path) -> filename:extension(Path) =:= ".beam" orelse filename:extension(Path) =:= <<".beam">>.

%% The behaviours that files define, with their callbacks; files that cannot be read define none.
-spec behaviours([file:filename_all()]) -> #{binary() => [{binary(), arity()}]}.
behaviours(Paths) ->
    Found = each(fun(Path) ->
        case read(Path, read) of
            {ok, Bin, _} -> scope_mark:behaviour(Bin);
            Error -> Error
        end
    end, Paths),
    maps:from_list([{Module, Callbacks} || {ok, Module, Callbacks} <- Found]).

%% A function of each element, in the order of the elements. Each runs in its own process, with a limit of time and
%% memory, because the file is a stranger's.
-spec each(fun((E) -> R), [E]) -> [R | {error, scope_mark:reason()}].
each(Do, Elements) when is_function(Do, 1) ->
    each(Do, lists:zip(lists:seq(1, length(Elements)), Elements), erlang:system_info(schedulers_online), #{}, #{}).

each(_, [], _, Running, Done) when map_size(Running) =:= 0 ->
    [R || {_, R} <- lists:sort(maps:to_list(Done))];
each(Do, [{N, E} | Rest], Free, Running, Done) when Free > 0 ->
    Limits = [monitor, {max_heap_size, #{size => ?MAX_HEAP_WORDS, kill => true, error_logger => false}}],
    {Pid, Ref} = spawn_opt(?MODULE, worker, [Do, E], Limits),
    Timer = erlang:start_timer(?TIMEOUT, self(), {slow, Pid}),
    each(Do, Rest, Free - 1, Running#{Ref => {N, Timer}}, Done);
each(Do, Rest, Free, Running, Done) ->
    receive
        {'DOWN', Ref, process, _, Reason} when is_map_key(Ref, Running) ->
            {{N, Timer}, Left} = maps:take(Ref, Running),
            _ = erlang:cancel_timer(Timer),
            Result = case Reason of
                {done, R} -> R;
                killed -> {error, too_expensive};
                _ -> {error, {bad_file, unreadable}}
            end,
            each(Do, Rest, Free + 1, Left, Done#{N => Result});
        {timeout, _, {slow, Pid}} ->
            exit(Pid, kill),
            each(Do, Rest, Free, Running, Done)
    end.

%% A worker gives its result as the reason of its end.
-spec worker(fun((E) -> term()), E) -> no_return().
worker(Do, E) -> exit({done, Do(E)}).

%% Marks a file in its place; with dry_run it only reports.
-spec mark(file:filename_all(), scope_mark:options(), boolean()) -> outcome().
mark(Path, Options, DryRun) ->
    with(Path, purpose(DryRun), fun(Bin, Was) ->
        case scope_mark:mark(Bin, Options) of
            {ok, New, #{marked := Marked} = Info} ->
                Status = case Marked of true -> marked; false -> unmarked end,
                replaced(Path, New, Was, DryRun, #{status => Status, info => Info});
            {unchanged, Info} -> #{status => unchanged, info => Info};
            {error, preloaded} -> #{status => skipped, reason => preloaded};
            {error, Reason} -> #{status => failed, reason => Reason}
        end
    end).

-spec unmark(file:filename_all(), boolean()) -> outcome().
unmark(Path, DryRun) ->
    with(Path, purpose(DryRun), fun(Bin, Was) ->
        case scope_mark:unmark(Bin) of
            {ok, New} -> replaced(Path, New, Was, DryRun, #{status => unmarked});
            unchanged -> #{status => unchanged};
            {error, Reason} -> #{status => failed, reason => Reason}
        end
    end).

-spec info(file:filename_all()) -> outcome().
info(Path) ->
    with(Path, read, fun(Bin, _) ->
        case scope_mark:info(Bin) of
            {ok, #{marked := true} = Info} -> #{status => marked, info => Info};
            {ok, Info} -> #{status => unmarked, info => Info};
            {error, Reason} -> #{status => failed, reason => Reason}
        end
    end).

purpose(true) -> read;
purpose(false) -> write.

with(Path, Purpose, Do) ->
    Outcome = case read(Path, Purpose) of
        {ok, Bin, Was} -> Do(Bin, Was);
        {error, Reason} -> #{status => failed, reason => Reason}
    end,
    Outcome#{path => Path}.

read(Path, Purpose) ->
    try
        ok = trusted(Purpose, filename:dirname(Path)),
        case file:read_link_info(Path, [{time, posix}]) of
            {ok, #file_info{type = regular, size = Size}} when Size > ?MAX_FILE -> {error, {bad_file, too_large}};
            {ok, #file_info{type = regular} = Was} ->
                case scope_mark_trust:check_file(Purpose, Path, Was) of
                    ok -> contents(Path, Was);
                    Untrusted -> Untrusted
                end;
            {ok, _} -> {error, no_regular_file};
            {error, Reason} -> {error, {file, Reason}}
        end
    catch
        throw:Why -> {error, Why}
    end.

contents(Path, Was) ->
    case file:read_file(Path) of
        {ok, Bin} -> {ok, Bin, Was};
        {error, Reason} -> {error, {file, Reason}}
    end.

replaced(_, _, _, true, Outcome) -> Outcome;
replaced(Path, New, Was, false, Outcome) ->
    case replace(Path, New, Was) of
        ok -> Outcome;
        {error, Reason} -> #{status => failed, reason => {file, Reason}}
    end.

%% The new contents go to a file beside it, which takes its place when it is complete and on the disk: readers of the
%% path see one or the other. Mode, owner and times stay, so nothing is compiled again for it; only bits that let a
%% program run as another user do not.
replace(Path, New, Was) ->
    Name = [".", filename:basename(Path, ".beam"), ".scope-mark.", os:getpid(), ".",
            integer_to_list(erlang:unique_integer([positive]))],
    Temporary = filename:join(filename:dirname(Path), unicode:characters_to_list(Name)),
    case written(Temporary, New, Was) of
        ok ->
            case file:rename(Temporary, Path) of
                ok -> ok;
                Error -> discarded(Temporary, Error)
            end;
        {error, eexist} = Error -> Error;
        Error -> discarded(Temporary, Error)
    end.

written(Path, New, #file_info{mode = Mode, uid = Uid, gid = Gid, mtime = Mtime, atime = Atime}) ->
    maybe_all([
        fun() -> to_disk(Path, New) end,
        fun() ->
            {ok, #file_info{uid = NowUid, gid = NowGid}} = file:read_link_info(Path),
            Owner = case {NowUid, NowGid} of
                {Uid, Gid} -> #file_info{};
                _ -> #file_info{uid = Uid, gid = Gid}
            end,
            file:write_file_info(Path, Owner, [{time, posix}])
        end,
        fun() ->
            Kept = #file_info{mode = Mode band 8#0777, mtime = Mtime, atime = Atime},
            file:write_file_info(Path, Kept, [{time, posix}])
        end
    ]).

to_disk(Path, New) ->
    case file:open(Path, [write, exclusive, raw, binary]) of
        {ok, Device} ->
            Result = maybe_all([
                fun() -> file:write_file_info(Path, #file_info{mode = 8#0600}) end,
                fun() -> file:write(Device, New) end,
                fun() -> file:datasync(Device) end
            ]),
            Closed = file:close(Device),
            case Result of
                ok -> Closed;
                _ -> Result
            end;
        Error -> Error
    end.

maybe_all([]) -> ok;
maybe_all([Do | Rest]) ->
    case Do() of
        ok -> maybe_all(Rest);
        Error -> Error
    end.

discarded(Temporary, Error) ->
    _ = file:delete(Temporary),
    Error.
