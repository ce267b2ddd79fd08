%% SPDX-License-Identifier: Apache-2.0
%% Whether another user can lead what is read or written in a folder elsewhere, by a link that takes the place of a file or a
%% folder between two looks. Erlang opens files by path only, so every folder from the root on has to be safe.
-module(scope_mark_trust).
-export([check/2, check_file/3]).

-include_lib("kernel/include/file.hrl").

-define(ROOT, 0).
-define(STICKY, 8#1000).
-define(MAX_LINKS, 40).

%% A folder that is written to, or that root reads: it, those above it and the links on the way belong to root or to the user
%% of this VM, and no other user may write to them. Above it, a folder such as /tmp may be: nobody can rename what is ours there.
-spec check(read | write, file:filename_all()) -> ok | {error, scope_mark:reason()}.
check(Purpose, Folder) ->
    with_user(Purpose, fun(Me) ->
        [Top | Names] = filename:split(filename:absname(Folder)),
        folder(Top, Names, Me, ?MAX_LINKS)
    end).

%% A file in a folder that is safe.
-spec check_file(read | write, file:filename_all(), file:file_info()) -> ok | {error, scope_mark:reason()}.
check_file(Purpose, Path, Info) ->
    with_user(Purpose, fun(Me) ->
        owner(Path, Info, Me),
        writable(Path, Info, Me)
    end).

with_user(Purpose, Do) ->
    case {os:type(), Purpose} of
        {{unix, _}, write} -> safely(Do, user());
        {{unix, _}, read} ->
            %% What another user reads, it may read.
            case user() of
                ?ROOT -> safely(Do, ?ROOT);
                _ -> ok
            end;
        _ -> ok
    end.

safely(Do, Me) ->
    try
        Do(Me),
        ok
    catch
        throw:Reason -> {error, Reason}
    end.

%% The folder Path, which is no link, and the names that lead on from it.
folder(Path, [], Me, _) ->
    writable(Path, info(Path), Me);
folder(Path, [<<".">> | Names], Me, Links) -> folder(Path, Names, Me, Links);
folder(Path, ["." | Names], Me, Links) -> folder(Path, Names, Me, Links);
folder(Path, [Up | Names], Me, Links) when Up =:= ".."; Up =:= <<"..">> ->
    folder(filename:dirname(Path), Names, Me, Links);
folder(Path, [Name | Names], Me, Links) ->
    #file_info{mode = Mode, uid = Owner} = Here = info(Path),
    Shared = Mode band ?STICKY =/= 0 andalso Owner =:= ?ROOT,
    Shared orelse writable(Path, Here, Me),
    Below = filename:join(Path, Name),
    Info = info(Below),
    owner(Below, Info, Me),
    case Info of
        #file_info{type = directory} -> folder(Below, Names, Me, Links);
        #file_info{type = symlink} when Shared; Links =:= 0 -> throw({untrusted, Below, link});
        #file_info{type = symlink} -> followed(Path, Below, Names, Me, Links);
        _ -> throw({file, enotdir})
    end.

followed(Path, Link, Names, Me, Links) ->
    case file:read_link_all(Link) of
        {ok, To} ->
            [Top | More] = filename:split(filename:absname(To, Path)),
            folder(Top, More ++ Names, Me, Links - 1);
        {error, Reason} -> throw({file, Reason})
    end.

info(Path) ->
    case file:read_link_info(Path) of
        {ok, Info} -> Info;
        {error, Reason} -> throw({file, Reason})
    end.

owner(_, #file_info{uid = Owner}, Me) when Owner =:= Me; Owner =:= ?ROOT -> ok;
owner(Path, #file_info{uid = Owner}, _) -> throw({untrusted, Path, {owner, Owner}}).

%% Members of a group that may write to a user's folder can change the code that this user runs: marking it gives them no more.
writable(Path, #file_info{mode = Mode}, Me) ->
    Others = case Me of ?ROOT -> 8#022; _ -> 8#002 end,
    Mode band Others =:= 0 orelse throw({untrusted, Path, writable}).

%% The id with which this process accesses files (proc(5), the fourth of Uid).
user() ->
    case file:read_file("/proc/self/status") of
        {ok, Status} ->
            {match, [Id]} = re:run(Status, "^Uid:(?:\\s+\\d+){3}\\s+(\\d+)", [multiline, {capture, [1], binary}]),
            binary_to_integer(Id);
        {error, _} ->
            list_to_integer(string:trim(os:cmd("id -u")))
    end.
